import { expect, test } from 'vitest';
import { NotJson, toBody, toKeys } from '../api/clients';
import { actsForItself, explainScope, PRESETS } from './scopes';

const EMPTY = { name: '', role: '', scopes: '', keys: '', keysUri: '', redirects: '', launchUrl: '' };

test('a scope is explained, and one that is none is not', () => {
  expect(explainScope('system/DiagnosticReport.rs')).toContain('DiagnosticReport');
  expect(explainScope('system/DiagnosticReport.read')).toBe(explainScope('system/DiagnosticReport.rs'));
  expect(explainScope('system/DiagnosticReport.rs?status=final')).toContain('status=final');
  expect(explainScope('offline_access')).not.toBeNull();
  for (const none of ['', 'system', 'system/*', 'system/*.', 'system/*.x', 'system/report.rs', 'root']) {
    expect(explainScope(none), none).toBeNull();
  }
});

test('what is narrowed to a patient or by a parameter only looks', () => {
  expect(explainScope('patient/*.cruds')).toBe(explainScope('patient/*.rs'));
  expect(explainScope('system/Patient.cud?gender=female')).toBeNull();
});

test('every preset is understood', () => {
  for (const preset of PRESETS) {
    for (const scope of preset.scopes.split(' ')) expect(explainScope(scope), scope).not.toBeNull();
  }
  expect(actsForItself(['user/*.rs'])).toBe(false);
  expect(actsForItself(['user/*.rs', 'system/*.rs'])).toBe(true);
});

test('what was left empty is not sent', () => {
  const body = toBody({ ...EMPTY, name: ' HIS ', scopes: 'system/*.rs\n launch ', role: 'ehr' });
  expect(body).toEqual({ name: 'HIS', scopes: 'system/*.rs launch', roles: ['ehr'], redirect_uris: [] });
  expect(toKeys('{"keys": []}', '')).toEqual({ jwks: { keys: [] } });
  expect(toKeys('{', ' https://ehr.test/jwks ')).toEqual({ jwks_uri: 'https://ehr.test/jwks' });
  expect(() => toKeys('{', '')).toThrow(NotJson);
});
