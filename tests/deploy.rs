//! What is in `deploy/` fits together and fits the program: ports, paths, files, permissions, times.

use crate::command_line::cdrelay;
use crate::support::bridge::Bridge;
use cdrelay::config::Config;
use figment::Figment;
use figment::providers::{Format, Toml};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const MANIFEST: &str = include_str!("../deploy/sidecar.yaml");
const CONTAINERFILE: &str = include_str!("../deploy/Containerfile");
const COMPOSE: &str = include_str!("../deploy/compose/compose.yaml");
const IMAGE: &str = include_str!("../deploy/image/build");
const PORTS: &str = "[ingress]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n";

fn objects(kind: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
    objects.into_iter().filter(|object| object["kind"] == kind).collect()
}

fn object(kind: &str) -> Value {
    let mut objects = objects(kind);
    assert_eq!(objects.len(), 1, "{kind}");
    objects.remove(0)
}

/// A Service that has an address of its own, and one that has none.
fn services() -> (Value, Value) {
    let (headless, plain): (Vec<_>, Vec<_>) =
        objects("Service").into_iter().partition(|service| service["spec"]["clusterIP"] == "None");
    assert_eq!((plain.len(), headless.len()), (1, 1));
    (plain[0].clone(), headless[0].clone())
}

fn pod() -> Value {
    object("StatefulSet")["spec"]["template"]["spec"].clone()
}

fn sidecar() -> Value {
    named(&pod()["initContainers"], "cdrelay")
}

fn named(list: &Value, name: &str) -> Value {
    let found = list.as_array().into_iter().flatten().find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list:#}")).clone()
}

fn config_text() -> String {
    object("ConfigMap")["data"]["cdrelay.toml"].as_str().unwrap().to_owned()
}

fn config() -> Config {
    Config::from_toml(&config_text()).unwrap()
}

#[test]
fn the_configuration_in_the_manifest_is_sound() {
    let directory = TempDir::new().unwrap();
    let (file, password) = (directory.path().join("cdrelay.toml"), directory.path().join("password"));
    fs::write(&file, config_text()).unwrap();
    fs::write(&password, "secret\n").unwrap();
    let setting = format!("sinks.kafka.sasl.password_file={}", password.display());
    let finished = cdrelay(&["check", "--config", file.to_str().unwrap(), "--set", &setting]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

#[test]
fn the_sidecar_starts_first_stays_and_has_time_to_stop() {
    let sidecar = sidecar();
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["image"], format!("cdrelay:{}", env!("CARGO_PKG_VERSION")));
    let config = config();
    let disconnecting = Duration::from_secs(2) * config.sinks.len() as u32;
    let own = config.shutdown.drain_delay + config.shutdown.grace_period + config.shutdown.drain + disconnecting;
    let all = Duration::from_secs(pod()["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(config.shutdown.drain_delay >= Duration::from_secs(5));
    assert!(all >= own + Duration::from_secs(30), "{own:?} of {all:?} leaves the application too little");
}

#[test]
fn every_path_is_mounted_from_something_that_exists() {
    let (sidecar, pod, stateful) = (sidecar(), pod(), object("StatefulSet"));
    let mount = |path: &Path| -> (Value, String) {
        let mounts = sidecar["volumeMounts"].as_array().unwrap();
        let holds = |mount: &&Value| path.starts_with(mount["mountPath"].as_str().unwrap());
        let mount = mounts.iter().find(holds).unwrap_or_else(|| panic!("{} is on no volume", path.display()));
        (mount.clone(), mount["name"].as_str().unwrap().to_owned())
    };
    let arguments: Vec<&str> = sidecar["args"].as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect();
    let ["run", "--config", file] = arguments[..] else { panic!("{arguments:?}") };
    let (config_mount, volume) = mount(Path::new(file));
    assert_eq!(Path::new(file).parent(), Some(Path::new(config_mount["mountPath"].as_str().unwrap())));
    let key = Path::new(file).file_name().unwrap().to_str().unwrap();
    assert!(object("ConfigMap")["data"][key].is_string());
    assert_eq!(named(&pod["volumes"], &volume)["configMap"]["name"], object("ConfigMap")["metadata"]["name"]);

    let document: Value = Figment::from(Toml::string(&config_text())).extract().unwrap();
    let password = Path::new(document["sinks"]["kafka"]["sasl"]["password_file"].as_str().unwrap());
    let (secret_mount, volume) = mount(password);
    assert_eq!(password.parent(), Some(Path::new(secret_mount["mountPath"].as_str().unwrap())));
    assert_eq!(named(&pod["volumes"], &volume)["secret"]["secretName"], object("Secret")["metadata"]["name"]);
    assert!(object("Secret")["stringData"][password.file_name().unwrap().to_str().unwrap()].is_string());

    let config = config();
    let (spool_mount, volume) = mount(&config.spool.path);
    assert!(spool_mount["readOnly"].is_null());
    let claims = stateful["spec"]["volumeClaimTemplates"].as_array().unwrap();
    let claim = claims.iter().find(|claim| claim["metadata"]["name"] == volume).unwrap();
    let storage = claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap();
    let gibibytes: u64 = storage.strip_suffix("Gi").unwrap().parse().unwrap();
    assert!(bytesize::ByteSize::gib(gibibytes) > config.spool.max_size);
}

#[tokio::test]
async fn probes_and_service_find_what_they_look_for() {
    let (sidecar, config) = (sidecar(), config());
    let port = |name: &str| named(&sidecar["ports"], name)["containerPort"].clone();
    for (name, address) in [("webhook", config.ingress.listen), ("admin", config.admin.listen)] {
        assert!(address.ip().is_unspecified());
        assert_eq!(port(name), address.port());
    }
    let (service, headless) = services();
    assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 1, "the admin port stays inside");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "webhook");
    let stateful = object("StatefulSet");
    for service in [&service, &headless] {
        assert_eq!(service["spec"]["selector"], stateful["spec"]["template"]["metadata"]["labels"]);
        assert_eq!(service["spec"]["selector"], stateful["spec"]["selector"]["matchLabels"]);
    }
    assert_eq!(stateful["spec"]["serviceName"], headless["metadata"]["name"]);

    let bridge = Bridge::start(&format!("{PORTS}[sinks.stdout]\ntype = 'stdout'\n")).await;
    for (probe, path) in
        [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz/ingress")]
    {
        assert_eq!(sidecar[probe]["httpGet"], json!({ "path": path, "port": "admin" }));
        assert_eq!(bridge.admin(path).await.status, 200);
    }
}

/// A mounted file or a mount within a mount would be refused, or stay as it was when the pod began: then nothing could be reloaded.
#[test]
fn what_is_mounted_can_change_while_the_pod_runs() {
    let mounts = sidecar()["volumeMounts"].as_array().unwrap().clone();
    let paths: Vec<_> = mounts.iter().map(|mount| Path::new(mount["mountPath"].as_str().unwrap())).collect();
    for (mount, path) in mounts.iter().zip(&paths) {
        assert!(mount["subPath"].is_null() && mount["subPathExpr"].is_null(), "{mount}");
        let within = paths.iter().filter(|other| path.starts_with(other)).count();
        assert_eq!(within, 1, "{} is within another mount", path.display());
    }
}

/// `restricted`, the strictest of the Kubernetes pod security standards, and no writing outside the volume.
#[test]
fn every_container_is_restricted() {
    let pod = pod();
    let context = &pod["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    assert!(context["runAsUser"].as_u64().unwrap() > 0 && context["fsGroup"] == context["runAsGroup"]);
    assert_eq!(context["fsGroupChangePolicy"], "OnRootMismatch");
    let containers = ["initContainers", "containers"].map(|kind| pod[kind].as_array().unwrap().clone()).concat();
    assert!(containers.len() > 1);
    for container in containers {
        let own = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(container["securityContext"], own, "{}", container["name"]);
    }
    assert_eq!(sidecar()["resources"]["limits"], json!({ "memory": "64Mi" }));
}

/// The hook of a sidecar runs when the pod's end begins, not when its own does.
#[test]
fn the_sidecar_has_no_hook_and_tells_why_it_ended() {
    let sidecar = sidecar();
    assert!(sidecar["lifecycle"].is_null());
    assert_eq!(sidecar["terminationMessagePolicy"], "FallbackToLogsOnError");
    assert!(sidecar["resources"]["requests"]["ephemeral-storage"].is_string());
}

/// Instructions with their arguments, continued lines joined.
fn instructions() -> Vec<(&'static str, String)> {
    let lines = CONTAINERFILE.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut instructions: Vec<(&str, String)> = Vec::new();
    let mut continued = false;
    for line in lines {
        let text = line.trim_end_matches('\\').trim();
        match instructions.last_mut().filter(|_| continued) {
            Some((_, arguments)) => *arguments += &format!(" {text}"),
            None => instructions.push(text.split_once(' ').map(|(name, rest)| (name, rest.to_owned())).unwrap()),
        }
        continued = line.ends_with('\\');
    }
    instructions
}

#[test]
fn the_image_is_built_from_what_is_here_and_runs_as_nobody() {
    let instructions = instructions();
    let stage = instructions.iter().rposition(|(name, _)| *name == "FROM").unwrap();
    let (building, last) = instructions.split_at(stage);
    let from: Vec<_> = building.iter().filter(|(name, _)| *name == "FROM").collect();
    assert!(matches!(from[..], [(_, base)] if base.ends_with("-bookworm AS build")), "{from:?}");
    assert!(last[0].1.starts_with("gcr.io/distroless/cc-debian12"), "{:?} is not of the same Debian", last[0]);
    let version = building.iter().find_map(|(_, text)| text.strip_prefix("RUST_VERSION=")).unwrap();
    assert_eq!(version, env!("CARGO_PKG_RUST_VERSION"));

    // Everything that is copied from here exists and is sent to the builder.
    let sent = include_str!("../.containerignore");
    let here = instructions.iter().filter(|(name, text)| *name == "COPY" && !text.starts_with("--from=build"));
    let mut copied = Vec::new();
    for (_, text) in here {
        let sources: Vec<_> = text.split_whitespace().collect();
        for source in &sources[..sources.len() - 1] {
            assert!(Path::new(source).exists(), "{source}");
            assert!(sent.lines().any(|line| line == format!("!{source}")), "{source} is ignored");
            copied.push(fs::canonicalize(source).unwrap());
        }
    }
    assert_eq!(sent.lines().filter(|line| line.starts_with('!')).count(), copied.len());
    // So is every file that the program includes.
    let included = included(Path::new("src"));
    assert!(included.iter().any(|file| file.ends_with("config/cdrelay.toml")), "{included:?}");
    for file in included {
        assert!(copied.iter().any(|source| file.starts_with(source)), "{} is not copied", file.display());
    }

    // Cargo looks for the file of a target that names none, also where it does not build that target.
    let manifest: Value = Figment::from(Toml::string(include_str!("../Cargo.toml"))).extract().unwrap();
    for target in ["test", "bench", "example"].iter().filter_map(|kind| manifest[kind].as_array()).flatten() {
        assert!(target["path"].is_string(), "{target}");
    }

    let only = |name: &str| {
        let found: Vec<_> = last.iter().filter(|(instruction, _)| *instruction == name).collect();
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.as_str()
    };
    let (user, group) = only("USER").split_once(':').unwrap();
    assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
    assert_eq!(pod()["securityContext"]["runAsUser"].to_string(), user);
    assert_eq!(group, user);
    // Any user may write there who has group 0.
    let owned = format!("--from=build --chown={user}:0 /out/lib/ /var/lib/");
    assert!(last.iter().any(|(name, text)| *name == "COPY" && *text == owned));
    assert_eq!(only("ENTRYPOINT"), "[\"cdrelay\"]");
    assert_eq!(only("EXPOSE"), "8080 9090");

    let command: Vec<String> = serde_json::from_str(only("CMD")).unwrap();
    let ["run", arguments @ ..] = &command.iter().map(String::as_str).collect::<Vec<_>>()[..] else { panic!() };
    let finished = cdrelay(&[&["check"], arguments].concat());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let volumes: Vec<String> = serde_json::from_str(only("VOLUME")).unwrap();
    assert!(arguments.iter().any(|argument| argument.starts_with(&format!("spool.path={}/", volumes[0]))));
}

/// The files that the program below this directory includes.
fn included(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(included(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let source = fs::read_to_string(&path).unwrap();
            let program = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let names = program.split("include_str!(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
            found.extend(names.map(|name| fs::canonicalize(directory.join(name)).unwrap()));
        }
    }
    found
}

/// The Job uses what the replica had: its configuration, its secrets, its claim, its place for the spool, its rights.
#[test]
fn the_drain_of_a_claim_is_like_the_sidecar_that_had_it() {
    let job: Value = serde_saphyr::from_str(include_str!("../deploy/drain-job.yaml")).unwrap();
    let (sidecar, pod, drain) = (sidecar(), pod(), &job["spec"]["template"]["spec"]);
    let container = named(&drain["containers"], "drain");
    assert_eq!(drain["securityContext"], pod["securityContext"]);
    for field in ["image", "securityContext", "resources", "volumeMounts", "terminationMessagePolicy"] {
        assert_eq!(container[field], sidecar[field], "{field}");
    }
    for volume in ["config", "secrets"] {
        assert_eq!(named(&drain["volumes"], volume), named(&pod["volumes"], volume));
    }
    let stateful = object("StatefulSet");
    let claim = named(&drain["volumes"], "spool")["persistentVolumeClaim"]["claimName"].clone();
    let template = stateful["spec"]["volumeClaimTemplates"][0]["metadata"]["name"].as_str().unwrap();
    assert_eq!(claim, format!("{template}-{}-1", stateful["metadata"]["name"].as_str().unwrap()));
    let arguments = container["args"].as_array().unwrap();
    assert_eq!(arguments[0], "drain");
    assert_eq!(arguments[1..3], sidecar["args"].as_array().unwrap()[1..3]);
}

/// The image that is made without an engine runs the same program as the same user.
#[test]
fn both_ways_to_the_image_start_the_same_command() {
    let instructions = instructions();
    let only = |name: &str| {
        let mut found = instructions.iter().filter(|(instruction, _)| *instruction == name);
        found.next_back().unwrap().1.as_str()
    };
    let list = |text: &str| serde_json::from_str::<Vec<String>>(text).unwrap();
    let given = |option: &str| -> Vec<&str> {
        let option = format!("--config.{option} ");
        IMAGE.split(option.as_str()).skip(1).map(|rest| rest.split_whitespace().next().unwrap()).collect()
    };
    assert_eq!(given("user"), [only("USER")]);
    assert_eq!(given("entrypoint"), list(only("ENTRYPOINT")));
    assert_eq!(given("cmd"), list(only("CMD")));
    assert_eq!(given("volume"), list(only("VOLUME")));
    assert_eq!(given("exposedports"), only("EXPOSE").split(' ').collect::<Vec<_>>());
}

#[test]
fn the_laptop_has_a_bridge_with_sound_settings_and_time_to_stop() {
    let compose: Value = serde_saphyr::from_str(COMPOSE).unwrap();
    let text = |name: &str| compose["configs"][name]["content"].as_str().unwrap();
    let config = Config::from_toml(text("bridge")).unwrap();
    let bridge = &compose["services"]["bridge"];
    let published: Vec<_> = bridge["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap()).collect();
    for address in [config.ingress.listen, config.admin.listen] {
        let suffix = format!(":{}", address.port());
        assert!(address.ip().is_unspecified() && published.iter().any(|port| port.ends_with(&suffix)), "{address}");
    }
    assert!(published.iter().all(|port| port.starts_with("127.0.0.1:")), "{published:?}");
    let time: u64 = bridge["stop_grace_period"].as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap();
    let disconnecting = Duration::from_secs(2) * config.sinks.len() as u32;
    let own = config.shutdown.drain_delay + config.shutdown.grace_period + config.shutdown.drain + disconnecting;
    assert!(Duration::from_secs(time) > own, "{own:?}");
    let volume = bridge["volumes"][0].as_str().unwrap().split_once(':').unwrap().1;
    assert!(config.spool.path.starts_with(volume) && bridge["read_only"] == true);
    assert!(Path::new("deploy/compose").join(bridge["build"]["context"].as_str().unwrap()).join("Cargo.toml").exists());
    let scraped: Value = serde_saphyr::from_str(text("prometheus")).unwrap();
    let target = format!("bridge:{}", config.admin.listen.port());
    assert_eq!(scraped["scrape_configs"][0]["static_configs"][0]["targets"], json!([target]));
    // So do the files that Prometheus and Grafana mount.
    for service in ["prometheus", "grafana"] {
        let volume = compose["services"][service]["volumes"][0].as_str().unwrap();
        assert!(Path::new("deploy/compose").join(volume.split(':').next().unwrap()).is_file(), "{volume}");
    }
    // Each configuration that a service mounts exists, and each one that exists is mounted.
    let services = compose["services"].as_object().unwrap().values();
    let mounted = services.flat_map(|service| service["configs"].as_array().cloned().unwrap_or_default());
    let mounted: std::collections::BTreeSet<_> =
        mounted.map(|config| config["source"].as_str().unwrap().to_owned()).collect();
    assert_eq!(mounted, compose["configs"].as_object().unwrap().keys().cloned().collect());
}
