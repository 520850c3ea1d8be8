// Checks objects of custom kinds, a JSON array on stdin, against the schemas of their makers. It has to lie beside node_modules.
import { readFileSync } from "node:fs";

const packages = {
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};
const objects = JSON.parse(readFileSync(0));
for (const object of objects) {
  const [group, version] = object.apiVersion.split("/");
  const models = await import(`@kubernetes-models/${packages[group]}/${group}/${version}`);
  new models[object.kind](object).validate();
}
console.log(`${objects.length} valid`);
