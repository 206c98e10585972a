// What fhir-kit-client, unmodified, makes of a running node: told as one line of JSON.
//   FHIR_BASE=http://… FHIR_TOKEN=… node kit.mjs
import { Client } from "fhir-kit-client";

const client = new Client({
  baseUrl: process.env.FHIR_BASE,
  bearerToken: process.env.FHIR_TOKEN,
});
const told = {};

const statement = await client.capabilityStatement();
told.fhirVersion = statement.fhirVersion;

let bundle = await client.resourceSearch({
  resourceType: "DiagnosticReport",
  searchParams: { status: "partial", _count: 2, _sort: "-_lastUpdated" },
});
const ids = [];
let back = 0;
let last;
while (bundle) {
  ids.push(...(bundle.entry ?? []).map((entry) => entry.resource.id));
  last = bundle;
  bundle = await client.nextPage({ bundle });
}
while (last) {
  last = await client.prevPage({ bundle: last });
  back += last?.entry?.length ?? 0;
}
Object.assign(told, { ids, back });

const posted = await client.resourceSearch({
  resourceType: "DiagnosticReport",
  searchParams: { "patient.identifier": "MRN-0042", _include: "DiagnosticReport:subject" },
  options: { postSearch: true },
});
told.posted = posted.entry.map((entry) => entry.resource.resourceType);

const patient = await client.create({
  resourceType: "Patient",
  body: JSON.parse(process.env.PATIENT),
});
const path = { resourceType: "Patient", id: patient.id };
const read = await client.read(path);
const updated = await client.update({
  ...path,
  body: { ...read, gender: "other" },
  options: { headers: { "If-Match": 'W/"1"' } },
});
const patched = await client.patch({
  ...path,
  jsonPatch: [{ op: "replace", path: "/gender", value: "female" }],
  options: { headers: { "If-Match": 'W/"2"' } },
});
const conditional = await client.update({
  resourceType: "Patient",
  searchParams: { identifier: "MRN-0099" },
  body: JSON.parse(process.env.PATIENT),
});
told.versions = [patient, updated, patched, conditional].map((r) => r.meta.versionId);
told.vread = (await client.vread({ ...path, version: "2" })).gender;
told.history = (await client.history(path)).entry.length;
told.typeHistory = (await client.history({ resourceType: "Patient" })).entry.length;
told.everything = (
  await client.operation({ name: "$everything", method: "GET", ...path })
).entry.length;

const entries = (method) => [
  { request: { method: "GET", url: `Patient/${patient.id}` } },
  { request: { method, url: "Patient/nobody" } },
];
const batch = await client.batch({
  body: { resourceType: "Bundle", type: "batch", entry: entries("GET") },
});
told.batch = batch.entry.map((entry) => entry.response.status);

const refusals = {
  transaction: () =>
    client.transaction({
      body: { resourceType: "Bundle", type: "transaction", entry: entries("GET") },
    }),
  read: () => client.read({ resourceType: "Patient", id: "nobody" }),
  delete: () => client.delete(path),
  compartment: () =>
    client.compartmentSearch({
      resourceType: "DiagnosticReport",
      compartment: { resourceType: "Patient", id: patient.id },
    }),
  system: () => client.systemSearch({ searchParams: { _id: "x" } }),
};
told.refused = {};
for (const [name, ask] of Object.entries(refusals)) {
  try {
    await ask();
    told.refused[name] = "not refused";
  } catch (error) {
    told.refused[name] = [error.response.status, error.response.data.resourceType];
  }
}
console.log(JSON.stringify(told));
