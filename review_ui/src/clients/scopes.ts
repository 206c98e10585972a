// What a SMART scope means, in words for the person who registers a program.
import { type MessageKey, t } from '../i18n';

const SCOPE = /^(patient|user|system)\/(\*|[A-Z][A-Za-z]{1,63})\.(read|write|\*|c?r?u?d?s?)(?:\?(\S{1,512}))?$/;
const OF_V1: Record<string, string> = { read: 'rs', write: 'cud', '*': 'cruds' };
const BESIDE: Record<string, MessageKey> = {
  launch: 'clients.scope.launch',
  'launch/patient': 'clients.scope.launchPatient',
  openid: 'clients.scope.openid',
  fhirUser: 'clients.scope.fhirUser',
  online_access: 'clients.scope.online',
  offline_access: 'clients.scope.offline',
};

/** What a scope lets a program do, or null when it is none. */
export function explainScope(scope: string): string | null {
  const beside = BESIDE[scope];
  if (beside !== undefined) return t(beside);
  const found = SCOPE.exec(scope);
  if (found === null || found[3] === '') return null;
  const [, context, kind, told, narrowing] = found;
  const letters = OF_V1[told!] ?? told!;
  const narrowed = context === 'patient' || narrowing !== undefined;
  const does = [...letters]
    .filter((letter) => !narrowed || letter === 'r' || letter === 's')
    .map((letter) => t(`clients.letter.${letter}` as MessageKey));
  if (does.length === 0) return null;
  const parts = { whom: t(`clients.context.${context}` as MessageKey), does: does.join(t('clients.and')) };
  const what = kind === '*' ? t('clients.everything') : kind!;
  const limit = narrowing === undefined ? '' : t('clients.narrowed', { narrowing });
  return `${t('clients.explained', { ...parts, what })}${limit}`;
}

/** Whether a program with these scopes acts for itself, and so needs keys and a role. */
export function actsForItself(scopes: readonly string[]): boolean {
  return scopes.some((scope) => scope.startsWith('system/'));
}

export interface Preset {
  key: MessageKey;
  scopes: string;
}

export const PRESETS: readonly Preset[] = [
  { key: 'clients.preset.results', scopes: 'system/DiagnosticReport.rs system/Observation.rs system/ImagingStudy.rs' },
  { key: 'clients.preset.orders', scopes: 'system/Patient.cruds system/ServiceRequest.cruds' },
  { key: 'clients.preset.notified', scopes: 'system/Subscription.crus system/DiagnosticReport.rs' },
  { key: 'clients.preset.viewer', scopes: 'launch launch/patient openid fhirUser patient/*.rs' },
];
