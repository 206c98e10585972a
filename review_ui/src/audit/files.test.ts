import { expect, test } from 'vitest';
import { toPage, toQuery, toSeen } from '../api/audit';
import { toCsv, toNdjson } from './files';

const EVENT = {
  resourceType: 'AuditEvent',
  id: '17-2',
  type: { system: 'http://terminology.hl7.org/CodeSystem/audit-event-type', code: 'rest' },
  subtype: [
    { system: 'http://hl7.org/fhir/restful-interaction', code: 'search-type' },
    { system: 'urn:own', code: 'fhir-search-type', display: 'fhir search-type' },
  ],
  action: 'E',
  recorded: '2026-11-21T08:00:00.000000+00:00',
  outcome: '0',
  agent: [
    {
      type: { coding: [{ code: '110153' }] },
      who: { identifier: { value: 'a-program' } },
      network: { address: '10.0.0.7', type: '2' },
    },
    {
      type: { coding: [{ code: '110152' }] },
      who: { identifier: { value: 'https://node' } },
      network: { address: 'https://node', type: '5' },
    },
    {
      type: { coding: [{ code: 'IRCP' }] },
      role: [{ text: 'ehr' }],
      name: '=HIS, "检验"',
      who: { identifier: { system: 'urn:own', value: 'u-1' } },
    },
  ],
  entity: [
    { type: { code: '2' }, role: { code: '24' }, query: btoa('Patient?name=~ab') },
    { type: { code: '4' }, detail: [{ type: 'repeated', valueString: '3' }] },
    { type: { code: '1' }, what: { reference: 'Patient/p-1' } },
  ],
};

test('an event is one row, and what it leaves out is left out', () => {
  const row = toSeen(EVENT);
  expect(row).toMatchObject({
    entry: 17,
    who: { id: 'u-1', name: '=HIS, "检验"' },
    program: 'a-program',
    verb: 'found',
    ending: 'served',
    patient: 'p-1',
    address: '10.0.0.7',
    query: 'Patient?name=~ab',
    repeated: 3,
    what: '',
    details: [],
  });
  const [caller, node] = EVENT.agent;
  const denied = toSeen({ ...EVENT, id: '4', outcome: '4', agent: [caller, node], entity: [] });
  expect(denied).toMatchObject({ entry: 4, who: null, ending: 'refused', patient: null, repeated: null });
});

test('who signed in, who took images out and who looked here have words of their own', () => {
  const verb = (code: string, subtype: string, action: string) =>
    toSeen({ ...EVENT, type: { code }, subtype: [{ code: subtype }], action }).verb;
  expect(verb('110114', '110122', 'E')).toBe('signedIn');
  expect(verb('110114', '110123', 'E')).toBe('signedOut');
  expect(verb('110106', 'print-report', 'R')).toBe('tookOut');
  expect(verb('110101', 'audit-who', 'R')).toBe('readTrail');
  expect(verb('110100', 'close', 'E')).toBe('used');
});

test('days are those of the reader, and what is not asked is not sent', () => {
  const nothing = { patients: [], actor: '', from: '', until: '', ending: '' as const };
  expect(toQuery(nothing)).toBe('_count=50');
  const query = new URLSearchParams(
    toQuery({ patients: ['a', 'b'], actor: 'u', from: '2026-11-21', until: '2026-11-21', ending: 'failed' }),
  );
  expect(query.get('patient')).toBe('a,b');
  expect(query.get('outcome')).toBe('8,12');
  const [from, until] = query.getAll('date').map((told) => Date.parse(told.slice(2)));
  expect(until! - from!).toBe(24 * 3600 * 1000);
  expect(new Date(from!).getHours()).toBe(0);
});

test('a page tells its cursor alone, whatever the node is called', () => {
  const bundle = {
    link: [{ relation: 'next', url: 'https://other.test/fhir/AuditEvent?_page=abc-1' }],
    entry: [{ resource: EVENT }, { resource: { resourceType: 'OperationOutcome' } }],
  };
  expect(toPage(bundle)).toMatchObject({ next: 'abc-1', rows: [{ id: '17-2' }] });
  expect(toPage({ link: [] })).toEqual({ next: null, rows: [] });
});

test('a file holds the events as they came, and a table no formula', () => {
  const row = toSeen(EVENT);
  expect(JSON.parse(toNdjson([row, row]).split('\n')[1]!)).toEqual(EVENT);
  const lines = toCsv([row]).split('\r\n');
  expect(lines[0]!.startsWith('\uFEFFid,recorded,who,name')).toBe(true);
  expect(lines[1]).toContain(`"'=HIS, ""检验"""`);
  expect(lines).toHaveLength(3);
});
