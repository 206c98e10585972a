// A report as the node serves it, for tests: one lesion read by the AI.
import { Index, toReport } from '../api/parse';
import type { Report, Resource } from '../api/types';

export const REPORT_ID = '7d6f0a53-0000-5000-8000-000000000001';
const PRIVATE = 'urn:oid:2.25.302567410295148372091187634512093847561';

const device = { reference: 'Device/reader-1' };
const aiAsserted = [{ code: 'AIAST' }];

export function observation(suffix: string, value: Resource, version = '1'): Resource {
  return {
    resourceType: 'Observation',
    id: `${REPORT_ID}-${suffix}`,
    meta: { versionId: version, lastUpdated: '2026-01-01T08:00:00Z', security: aiAsserted },
    status: 'preliminary',
    code: { text: suffix },
    device,
    ...value,
  };
}

export const coded = (key: string, code?: Resource): Resource => ({
  coding: [...(code ? [code] : []), { system: PRIVATE, code: key }],
});
const absent = (text?: string) => ({ dataAbsentReason: { coding: [{ code: 'not-performed' }], text } });

export const OBSERVATIONS: Resource[] = [
  observation('l1', {
    bodySite: { coding: [{ system: 'http://snomed.info/sct', code: '80248007' }] },
    component: [{ code: {}, valueCodeableConcept: { coding: [{ code: '129773009' }] } }],
    hasMember: ['shape', 'margin', 'calcification', 'category', 'probability', 'size'].map((suffix) => ({
      reference: `Observation/${REPORT_ID}-l1-${suffix}`,
    })),
    extension: [
      {
        url: 'https://fhir.sononode.org/StructureDefinition/lesion-region',
        extension: [
          { url: 'sopInstanceUid', valueOid: 'urn:oid:1.2.3.4' },
          { url: 'frame', valuePositiveInt: 7 },
          { url: 'box', valueString: '10,20,110,90' },
        ],
      },
      { url: 'https://fhir.sononode.org/StructureDefinition/heat-map', valueString: '1.2.3.9' },
    ],
  }),
  observation('l1-shape', { valueCodeableConcept: coded('irregular') }),
  observation('l1-orientation', absent()),
  observation('l1-margin', {
    component: [
      { code: {}, valueCodeableConcept: coded('indistinct') },
      { code: {}, valueCodeableConcept: { coding: [{ system: 'http://snomed.info/sct', code: '129742005' }] } },
    ],
  }),
  observation('l1-boundary', absent()),
  observation('l1-calcification', {
    valueCodeableConcept: { coding: [{ system: PRIVATE, code: 'CALC-NONE' }], text: 'none' },
  }),
  observation('l1-echo', absent()),
  observation('l1-posterior', absent()),
  observation('l1-category', { valueCodeableConcept: coded('4C') }),
  observation('l1-probability', { valueQuantity: { value: 91.2, unit: '%', code: '%' } }),
  observation('l1-size', {
    component: [11.8, 9.1, 7.4].map((value) => ({ code: {}, valueQuantity: { value, code: 'mm' } })),
  }),
  observation('category', { valueCodeableConcept: coded('4C') }),
  observation('advice', { valueCodeableConcept: coded('strong_biopsy') }),
];

export const DIAGNOSTIC_REPORT: Resource = {
  resourceType: 'DiagnosticReport',
  id: REPORT_ID,
  meta: { versionId: '1', lastUpdated: '2026-01-01T08:00:00Z', security: aiAsserted },
  status: 'partial',
  subject: { reference: 'Patient/p1' },
  effectiveDateTime: '2026-01-01',
  imagingStudy: [{ reference: 'ImagingStudy/1.2.3' }],
  result: ['l1', 'category', 'advice'].map((suffix) => ({ reference: `Observation/${REPORT_ID}-${suffix}` })),
  performer: [device],
  extension: [
    {
      url: 'https://fhir.sononode.org/StructureDefinition/not-read',
      valueString: '彩色多普勒',
      _valueString: {
        extension: [
          {
            url: 'http://hl7.org/fhir/StructureDefinition/translation',
            extension: [
              { url: 'lang', valueCode: 'en' },
              { url: 'content', valueString: 'colour Doppler' },
            ],
          },
        ],
      },
    },
  ],
};

export const PATIENT: Resource = {
  resourceType: 'Patient',
  id: 'p1',
  name: [{ text: '张*' }],
  gender: 'female',
  extension: [{ url: 'https://fhir.sononode.org/StructureDefinition/patient-age', valueString: '47' }],
};

export function indexOf(resources: Resource[]): Index {
  return new Index().add({ entry: resources.map((resource) => ({ resource })) });
}

/** The report with some Observations replaced. */
export function reportWith(changed: Resource[] = [], older = new Map<string, Resource>(), root: Resource = {}): Report {
  const kept = OBSERVATIONS.filter((row) => !changed.some((other) => other.id === row.id));
  const source = { ...DIAGNOSTIC_REPORT, ...root };
  return toReport(source, indexOf([...kept, ...changed, source, PATIENT]), older);
}
