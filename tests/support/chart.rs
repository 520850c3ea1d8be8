//! Helm and what checks the objects that it makes, all fetched by `tests/run`.

use serde_json::Value;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

/// Where the chart is.
pub const CHART: &str = "deploy/helm/cdrelay";

/// The directory with all of them.
pub struct Tools(PathBuf);

impl Tools {
    /// `None`, and a line that says so, if they cannot be had here.
    pub fn find() -> Option<Self> {
        let tools = env::var("CDRELAY_TEST_CHART_TOOLS")
            .expect("CDRELAY_TEST_CHART_TOOLS names no tools for the chart: run tests/run, which fetches them");
        if tools.is_empty() {
            let told = "\n*** NOT TESTED: the Helm chart. tests/run says at its start which tool cannot be had here.\n";
            // Past the harness, which shows the output of failed tests only.
            stderr().write_all(told.as_bytes()).unwrap();
            return None;
        }
        Some(Self(tools.into()))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.0.join("bin").join(name));
        // Nothing of the user's own Helm, and nothing left there.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.0.join("helm"));
        }
        command
    }

    pub fn helm(&self) -> Command {
        self.command("helm")
    }

    pub fn helm_unittest(&self) -> Command {
        self.command("helm-unittest")
    }

    pub fn kube_score(&self) -> Command {
        self.command("kube-score")
    }

    pub fn kubernetes_validate(&self) -> Command {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", self.0.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
        python.args(["-m", "kubernetes_validate"]);
        python
    }

    /// Panics unless the schemas of their makers take these objects.
    pub fn check_custom_kinds(&self, objects: &[Value]) {
        let mut node = Command::new("node");
        node.arg(self.0.join("npm/custom_kinds.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = node.spawn().unwrap();
        let text = serde_json::to_string(objects).unwrap();
        node.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = node.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{} valid\n", objects.len()));
    }
}

/// The names of the sets of values.
pub fn value_sets() -> Vec<String> {
    let files =
        fs::read_dir(format!("{CHART}/ci")).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.map(|file| file.strip_suffix(".yaml").unwrap().to_owned()).collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    names
}

/// The objects in a stream of YAML documents.
pub fn objects(text: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    objects.into_iter().filter(|object| !object.is_null()).collect()
}
