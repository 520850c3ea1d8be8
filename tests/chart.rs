//! The Helm chart makes objects that Kubernetes takes, for every set of values in its `ci/`, and refuses wrong values with a useful message.

use crate::command_line::{Finished, cdrelay, finished};
use crate::support::chart::{CHART, Tools, objects, value_sets};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The oldest version of Kubernetes that the chart is for, and the newest one.
const KUBERNETES: [&str; 2] = ["1.29.0", "1.37.0"];

/// Groups of kinds that Kubernetes itself does not know.
const CUSTOM: [&str; 3] = ["gateway.networking.k8s.io", "keda.sh", "monitoring.coreos.com"];

/// What kube-score asks for and the chart does not do.
const IGNORED: [(&str, &str); 5] = [
    (
        "container-image-pull-policy",
        "a version or a digest names one image; asking the registry at each start couples starts to it",
    ),
    (
        "container-ephemeral-storage-request-and-limit",
        "the pod would be evicted for its own log, which the kubelet rotates",
    ),
    ("container-security-context-user-group-id", "any user does; OpenShift chooses one, elsewhere it is the image's"),
    ("statefulset-has-host-podantiaffinity", "topologySpreadConstraints spread over nodes and zones"),
    ("deployment-has-host-podantiaffinity", "the same"),
];

fn template(tools: &Tools, values: &str) -> Vec<Value> {
    objects(&template_text(tools, values))
}

fn template_text(tools: &Tools, values: &str) -> String {
    let file = format!("{CHART}/ci/{values}.yaml");
    let mut helm = tools.helm();
    helm.args(["template", "calls", CHART, "--namespace", "telephony", "--values", &file]);
    helm.args(["--kube-version", KUBERNETES[1]]);
    if values == "openshift" {
        helm.args(["--api-versions", "security.openshift.io/v1"]);
    }
    finished(&mut helm).success()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn every_set_of_values_makes_objects_that_kubernetes_takes() {
    let Some(tools) = Tools::find() else { return };
    let directory = TempDir::new().unwrap();
    let (mut files, mut custom) = (Vec::new(), Vec::new());
    for values in value_sets() {
        let file = format!("{CHART}/ci/{values}.yaml");
        let mut lint = tools.helm();
        lint.args(["lint", "--strict", CHART, "--kube-version", KUBERNETES[1], "--values", &file]);
        finished(&mut lint).success();
        let text = template_text(&tools, &values);
        let group = |object: &Value| object["apiVersion"].as_str().unwrap().split('/').next().unwrap().to_owned();
        custom.extend(objects(&text).into_iter().filter(|object| CUSTOM.contains(&group(object).as_str())));
        let path = directory.path().join(format!("{values}.yaml"));
        fs::write(&path, text).unwrap();
        files.push(path);
    }
    for version in KUBERNETES {
        let output = finished(tools.kubernetes_validate().args(["--strict", "-k", version]).args(&files)).success();
        // A kind without a schema is only warned of.
        let warnings = output.lines().filter(|line| line.contains("WARN"));
        let known = |line: &&str| CUSTOM.iter().any(|group| line.contains(&format!("api version {group}/")));
        assert!(warnings.clone().all(|line| known(&line)), "{output}");
        assert_eq!(warnings.count(), custom.len(), "{output}");
    }
    let kinds: BTreeSet<_> = custom.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["HTTPRoute", "PrometheusRule", "ScaledObject", "ServiceMonitor"].into());
    tools.check_custom_kinds(&custom);
}

/// What stands in the ConfigMap is what the program reads.
#[test]
fn every_configuration_is_sound_to_the_program() {
    let Some(tools) = Tools::find() else { return };
    let directory = TempDir::new().unwrap();
    let here = format!("{}/", directory.path().display());
    for file in ["kafka-password", "webhook-token"] {
        fs::write(directory.path().join(file), "a long secret\n").unwrap();
    }
    let mut checked = 0;
    for values in value_sets() {
        for map in of_kind(&template(&tools, &values), "ConfigMap") {
            let Some(config) = map["data"]["cdrelay.yaml"].as_str() else { continue };
            let path = directory.path().join("cdrelay.yaml");
            fs::write(&path, config.replace("/etc/cdrelay/secrets/", &here)).unwrap();
            let checked_config = cdrelay(&["check", "--config", path.to_str().unwrap()]);
            assert_eq!(checked_config.code, Some(0), "{values}: {config}{}", checked_config.stderr);
            checked += 1;
        }
    }
    assert_eq!(checked, value_sets().len() - 1, "one set names a ConfigMap of its own");
}

/// The values that deploy/README.md shows can be installed as they stand there.
#[test]
fn the_values_shown_make_a_configuration_that_is_sound() {
    let Some(tools) = Tools::find() else { return };
    let (_, shown) = include_str!("../deploy/README.md").split_once("```yaml\nconfig:").unwrap();
    let shown = format!("config:{}", shown.split_once("```").unwrap().0);
    let directory = TempDir::new().unwrap();
    let here = format!("{}/", directory.path().display());
    for file in ["kafka-password", "webhook-token"] {
        fs::write(directory.path().join(file), "a long secret\n").unwrap();
    }
    let values = directory.path().join("values.yaml");
    fs::write(&values, shown).unwrap();
    let mut helm = tools.helm();
    helm.args(["template", "calls", CHART, "--kube-version", KUBERNETES[1], "--values", values.to_str().unwrap()]);
    let objects = objects(&finished(&mut helm).success());
    let config = of_kind(&objects, "ConfigMap")[0]["data"]["cdrelay.yaml"].as_str().unwrap();
    let file = directory.path().join("cdrelay.yaml");
    fs::write(&file, config.replace("/etc/cdrelay/secrets/", &here)).unwrap();
    cdrelay(&["check", "--config", file.to_str().unwrap()]).success();
}

/// `restricted`, the strictest of the Kubernetes pod security standards, without a change of the values.
#[test]
fn every_pod_is_restricted() {
    let Some(tools) = Tools::find() else { return };
    let mut pods = 0;
    for values in value_sets() {
        let objects = template(&tools, &values);
        for object in objects.iter().filter(|object| object["spec"]["template"]["spec"].is_object()) {
            let pod = &object["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{values}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{values}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{values}");
            let own =
                |container: &&Value| ["cdrelay", "drain", "haproxy"].contains(&container["name"].as_str().unwrap());
            for container in pod["containers"].as_array().unwrap().iter().filter(own) {
                let restricted = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                });
                assert_eq!(container["securityContext"], restricted, "{values}");
                assert_eq!(container["terminationMessagePolicy"], "FallbackToLogsOnError");
                assert!(container["resources"]["requests"]["ephemeral-storage"].is_string());
                pods += 1;
            }
        }
    }
    assert!(pods > 12, "{pods}");
}

#[test]
fn kube_score_has_nothing_to_say_but_what_is_justified() {
    let Some(tools) = Tools::find() else { return };
    let directory = TempDir::new().unwrap();
    for values in ["haproxy", "drain", "nats-deployment"] {
        let path = directory.path().join(format!("{values}.yaml"));
        fs::write(&path, template_text(&tools, values)).unwrap();
        let mut score = tools.kube_score();
        score.args(["score", "--output-format", "ci", "--exit-one-on-warning", "--ignore-container-cpu-limit"]);
        for (test, reason) in IGNORED {
            assert!(!reason.is_empty());
            score.args(["--ignore-test", test]);
        }
        let scored = finished(score.arg("--kubernetes-version").arg("v1.37").arg(&path));
        assert_eq!(scored.code, Some(0), "{values}: {scored:?}");
        assert!(scored.stdout.contains("[OK]"), "{scored:?}");
    }
}

#[test]
fn the_unit_tests_of_the_chart_pass() {
    let Some(tools) = Tools::find() else { return };
    let output = finished(tools.helm_unittest().arg(CHART)).success();
    assert!(output.contains("Test Suites: 2 passed, 2 total"), "{output}");
}

/// HAProxy itself reads what the chart makes of the shipped configuration.
#[test]
fn the_configuration_of_haproxy_is_sound() {
    let (Some(tools), Some(haproxy)) = (Tools::find(), crate::haproxy::program()) else { return };
    let directory = TempDir::new().unwrap();
    for (values, bridges) in [("haproxy", 3), ("hpa", 4), ("openshift", 2)] {
        let objects = template(&tools, values);
        let configs = of_kind(&objects, "ConfigMap").into_iter().filter_map(|map| map["data"]["haproxy.cfg"].as_str());
        let [config] = configs.collect::<Vec<_>>()[..] else { panic!("{values}") };
        assert_eq!(config.matches("\n    server bridge-").count(), bridges, "{config}");
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        finished(Command::new(&haproxy).args(["-c", "-f", file.to_str().unwrap()])).success();
    }
}

/// Settings on top of the fewest values, and what the message says.
const WRONG: [(&str, &[&str]); 32] = [
    ("replica=3", &["additional properties 'replica' not allowed"]),
    ("config=null", &["missing property 'config'"]),
    ("replicas=0", &["/replicas", "minimum"]),
    ("replicas=two", &["/replicas", "want integer"]),
    ("workload=DaemonSet", &["/workload", "'StatefulSet', 'Deployment'"]),
    ("image.tag=1", &["/image/tag", "want string"]),
    ("image.digest=latest", &["/image/digest", "sha256:"]),
    ("image.pullPolicy=Sometimes", &["/image/pullPolicy", "'IfNotPresent'"]),
    ("persistence.size=2GB", &["/persistence/size", "Gi"]),
    ("persistence.accessModes[0]=ReadWriteMany", &["/persistence/accessModes/0", "'ReadWriteOnce'"]),
    ("service.type=Headless", &["/service/type", "'LoadBalancer'"]),
    ("service.port=0", &["/service/port", "minimum"]),
    ("autoscaling.kind=VPA", &["/autoscaling/kind", "'HPA', 'KEDA'"]),
    ("autoscaling.cpuUtilization=170", &["/autoscaling/cpuUtilization", "maximum"]),
    ("autoscaling.enabled=true,autoscaling.maxReplicas=1", &["autoscaling.maxReplicas", "minReplicas"]),
    ("config.ingress.listen=8080", &["/config/ingress/listen"]),
    ("config.ingress.listen=127.0.0.1:8080", &["config.ingress.listen", "127.0.0.1:8080", "0.0.0.0"]),
    ("config.shutdown.drain=soon", &["/config/shutdown/drain", "'soon'"]),
    ("config.spool.path=spool", &["/config/spool/path", "'spool'"]),
    ("config.spool.max_size=4GiB", &["persistence.size", "2Gi", "4GiB"]),
    ("config.spol.path=/var/lib/spool", &["/config", "'spol' not allowed"]),
    ("config.ingress.max_bdoy=1MiB", &["/config/ingress", "'max_bdoy' not allowed"]),
    ("config.ingress.ack=never", &["/config/ingress/ack", "'delivered'"]),
    ("config.sinks.kafka.brokerss=a:9092", &["/config/sinks/kafka", "'brokerss' not allowed"]),
    ("config.sinks.kafka.compression=rar", &["/config/sinks/kafka/compression", "'zstd'"]),
    ("config.sinks=null", &["config.sinks", "config.sinks.kafka.type=kafka"]),
    ("drain.ordinals[0]=1", &["drain.ordinals", "replica 1 runs"]),
    ("drain.wait=forever", &["/drain/wait", "'forever'"]),
    ("haproxy.enabled=true,workload=Deployment", &["haproxy.enabled", "StatefulSet"]),
    ("httpRoute.enabled=true", &["httpRoute.parentRefs", "Gateway"]),
    ("ingress.enabled=true", &["ingress.hosts"]),
    ("networkPolicy.webhooksFrom[0].cidr=10.0.0.0/8", &["/networkPolicy/webhooksFrom/0", "'cidr' not allowed"]),
];

#[test]
fn wrong_values_are_refused_with_a_useful_message() {
    let Some(tools) = Tools::find() else { return };
    let values = format!("{CHART}/ci/minimal.yaml");
    let install = |setting: &str| -> Finished {
        let mut helm = tools.helm();
        helm.args(["template", CHART, "--kube-version", KUBERNETES[1], "--values", &values, "--set", setting]);
        finished(&mut helm)
    };
    install("replicas=2").success();
    for (setting, words) in WRONG {
        let refused = install(setting);
        assert_eq!(refused.code, Some(1), "{setting}: {refused:?}");
        for word in words {
            assert!(refused.stderr.contains(word), "{setting} does not say {word:?}: {}", refused.stderr);
        }
    }
}

/// Needs no tool: each value has its place in the schema, with a type, and the other way round.
#[test]
fn values_and_schema_have_the_same_keys() {
    let values: Value = serde_saphyr::from_str(&fs::read_to_string(format!("{CHART}/values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(format!("{CHART}/values.schema.json")).unwrap()).unwrap();
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let mut known = keys(&schema["properties"]);
    assert!(known.remove("global"));
    assert_eq!(keys(&values), known);
    for (key, value) in values.as_object().unwrap().iter().filter(|(key, _)| *key != "config") {
        let properties = &schema["properties"][key]["properties"];
        if schema["properties"][key]["additionalProperties"] == false {
            let optional: BTreeSet<_> = ["claims".to_owned()].into();
            let found: BTreeSet<_> = keys(properties).difference(&optional).cloned().collect();
            assert_eq!(found, keys(value), "{key}");
        }
    }
}

/// The chart, the sidecar's manifest and the image are of the same version.
#[test]
fn the_version_is_that_of_the_program() {
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(format!("{CHART}/Chart.yaml")).unwrap()).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert!(Path::new(CHART).join("files/haproxy.cfg").exists());
    assert!(Command::new("test").args(["-L", &format!("{CHART}/files/haproxy.cfg")]).status().unwrap().success());
}
