//! The routes of the ingress: which path is answered, by which methods, for whom, and what is said of its events.

mod token;

use super::auth::{self, Auth, Denied, Type};
use super::tls;
use crate::event::{DEFAULT_INGRESS, Event, Events};
use crate::log_throttle::LogThrottle;
use crate::metrics::IngressMetrics;
use crate::route::{Origin, Origins};
use hyper::Method;
use hyper::header::HeaderValue;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where webhooks are taken unless something else is configured.
pub const DEFAULT_PATH: &str = "/webhook/cdr";
/// What stands in a path in place of a secret.
const SECRET: &str = "{secret}";
/// What is said of a path that holds the secret itself.
pub const EXPOSED: &str = "a segment of it looks like a secret, and /openapi.json shows paths to whoever reaches the admin port; write {secret} in its \
                           place, and the secret into an `auth` of the type \"path\"";

/// `[ingress.routes.NAME]`, and the same keys of `[ingress]` for the route `default`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its path.
    pub path: String,
    /// The methods that bring webhooks.
    #[serde(default = "default_methods")]
    pub methods: Vec<Taken>,
    /// What is asked of a request; all of it.
    #[serde(default)]
    pub auth: Vec<auth::Config>,
    /// What `{labels.name}` stands for in templates.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Template of the CloudEvents source, in place of the sink's own.
    #[serde(default)]
    pub source: Option<String>,
}

/// A method that may bring webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Taken {
    /// The event is in the query.
    Get,
    /// A probe: nothing is stored.
    Head,
    /// The events are in the body.
    Post,
    /// The same.
    Put,
}

/// Those that are taken unless configured otherwise.
pub fn default_methods() -> Vec<Taken> {
    vec![Taken::Get, Taken::Head, Taken::Post]
}

impl Taken {
    /// As it stands in a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }
}

impl super::Config {
    /// The routes by their names.
    pub fn all_routes(&self) -> BTreeMap<String, Config> {
        let own = |path: &String| Config {
            path: path.clone(),
            methods: self.methods.clone(),
            auth: self.auth.clone(),
            labels: self.labels.clone(),
            source: self.source.clone(),
        };
        let own = self.path.as_ref().map(|path| (DEFAULT_INGRESS.to_owned(), own(path)));
        self.routes.clone().into_iter().chain(own).collect()
    }

    /// Whether these events are of applications whose events the route takes: what is asked again of a body that is decoded later.
    pub fn takes(&self, route: &str, events: &[Event]) -> bool {
        let own = (route == DEFAULT_INGRESS).then_some(&self.auth);
        let auth = self.routes.get(route).map(|route| &route.auth).or(own);
        auth.is_none_or(|auth| auth.iter().all(|auth| auth.takes(events)))
    }

    /// What the routes say of their events.
    pub fn origins(&self) -> Origins {
        let routes = self.all_routes().into_iter();
        let secrets = |auth: &[auth::Config]| {
            let query = auth.iter().filter(|auth| auth.r#type == Type::Query);
            query.filter_map(|auth| auth.parameter.clone()).collect()
        };
        let origin = |route: Config| Origin {
            secret_parameters: secrets(&route.auth),
            labels: route.labels,
            source: route.source,
        };
        routes.map(|(name, route)| (name, origin(route))).collect()
    }

    /// The routes that take webhooks from anybody, where others than this machine can reach them.
    pub fn open_doors(&self) -> Vec<String> {
        let asks = |tls: &tls::Config| tls.client_ca_file.is_some() && tls.client_auth == tls::ClientAuth::Required;
        let reachable = !self.listen.ip().to_canonical().is_loopback() && !self.tls.as_ref().is_some_and(asks);
        let routes = self.all_routes().into_iter();
        routes.filter(|(_, route)| reachable && route.auth.is_empty()).map(|(name, _)| name).collect()
    }

    /// The settings of paths with a segment that looks like a secret, which is none where it stands: a path is told to whoever
    /// reads the description of the API.
    pub fn exposed_secrets(&self) -> Vec<String> {
        let routes = self.all_routes().into_iter();
        routes
            .filter(|(_, route)| route.path.split('/').any(token::looks_random))
            .map(|(name, _)| format!("{}.path", place(&name)))
            .collect()
    }

    /// What is wrong with the routes: settings and problems. Files are not looked at.
    pub fn route_problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if self.path.is_none() {
            let unused = [
                ("auth", !self.auth.is_empty()),
                ("labels", !self.labels.is_empty()),
                ("source", self.source.is_some()),
                ("methods", self.methods != default_methods()),
            ];
            problems.extend(unused.into_iter().filter(|(_, set)| *set).map(|(key, _)| {
                let problem = "is a setting of the route `default`, which there is only with `ingress.path` where there are other \
                               routes; write that too, or move this to `[ingress.routes.NAME]`";
                (format!("ingress.{key}"), problem.to_owned())
            }));
        }
        for name in self.routes.keys().filter(|name| !is_name(name) || *name == DEFAULT_INGRESS) {
            let problem = "a route's name has 1 to 64 characters of a-z 0-9 _ -, and is not `default`, which `[ingress]` itself is";
            problems.push((format!("ingress.routes.{name}"), problem.to_owned()));
        }
        let routes = self.all_routes();
        let mut paths: Vec<(&String, Path)> = Vec::new();
        for (name, route) in &routes {
            let at = place(name);
            let mut problem = |key: &str, text: String| problems.push((format!("{at}.{key}"), text));
            match Path::parse(&route.path) {
                Ok(path) => {
                    if let Some((other, _)) = paths.iter().find(|(_, other)| other.overlaps(&path)) {
                        let other = place(other);
                        problem(
                            "path",
                            format!(
                                "found {:?}, which `{other}.path` could mean too; each route needs its own",
                                route.path
                            ),
                        );
                    }
                    let secret = route.auth.iter().position(|auth| auth.r#type == Type::Path);
                    match (&path, secret) {
                        (Path::Exact(_), Some(index)) => problem(
                            &format!("auth.{index}.type"),
                            format!(
                                "found \"path\", and `{at}.path` is {:?}; it needs a segment {SECRET}, such as \"/webhook/{SECRET}/cdr\"",
                                route.path
                            ),
                        ),
                        (Path::Secret { .. }, None) => {
                            problem(
                                "path",
                                format!("found {:?}; {SECRET} needs an `auth` of the type \"path\"", route.path),
                            );
                        }
                        _ => {}
                    }
                    paths.push((name, path));
                }
                Err(text) => problem("path", format!("found {:?}; {text}", route.path)),
            }
            if !route.methods.iter().any(|method| *method != Taken::Head) {
                problem("methods", "none of them brings webhooks; allowed are GET, HEAD, POST, PUT".into());
            }
            for label in route.labels.keys().filter(|label| !is_name(label)) {
                problem(&format!("labels.{label}"), "a label's name has 1 to 64 characters of a-z 0-9 _ -".into());
            }
            let authorization = |auth: &&auth::Config| matches!(auth.r#type, Type::Bearer | Type::Basic);
            if route.auth.iter().filter(authorization).count() > 1 {
                problem(
                    "auth",
                    "asks for the header field Authorization more than once, and a request has but one; put \
                                 several valid tokens into `secrets` or `secret_files` of one"
                        .into(),
                );
            }
            for (index, auth) in route.auth.iter().enumerate() {
                if let Err(auth::Problem { key, text }) = auth.check() {
                    problem(&format!("auth.{index}.{key}"), text);
                }
            }
        }
        problems
    }
}

/// The settings of a route stand here.
fn place(name: &str) -> String {
    if name == DEFAULT_INGRESS { "ingress".to_owned() } else { format!("ingress.routes.{name}") }
}

fn is_name(name: &str) -> bool {
    let legal = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '_' | '-');
    !name.is_empty() && name.len() <= 64 && name.chars().all(legal)
}

/// A route's path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    Exact(String),
    /// The secret is a whole segment.
    Secret {
        before: String,
        after: String,
    },
}

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("a path begins with `/`".into());
        }
        if let Some(illegal) =
            text.chars().find(|character| !matches!(character, '!'..='~') || "?#".contains(*character))
        {
            return Err(format!("{illegal:?} does not stand in a path; write it percent-encoded, and no query"));
        }
        let (before, after) = match text.split_once(SECRET) {
            None if text.contains(['{', '}']) => return Err(format!("braces stand for a secret alone: {SECRET}")),
            None => return Ok(Self::Exact(text.to_owned())),
            Some(parts) => parts,
        };
        if after.contains(['{', '}']) || before.contains(['{', '}']) {
            return Err(format!("{SECRET} may stand there once"));
        }
        if !before.ends_with('/') || !(after.is_empty() || after.starts_with('/')) {
            return Err(format!("{SECRET} has to be a whole segment, such as in \"/webhook/{SECRET}/cdr\""));
        }
        Ok(Self::Secret { before: before.to_owned(), after: after.to_owned() })
    }

    /// What stands in place of the secret, if this is the path.
    fn secret<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Self::Secret { before, after } = self else { return None };
        let secret = path.strip_prefix(before)?.strip_suffix(after)?;
        (!secret.is_empty() && !secret.contains('/')).then_some(secret)
    }

    /// Whether one path could be both. One without a secret is looked for first, so it may look like another's secret.
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(other)) => one == other,
            (Self::Secret { before, after }, Self::Secret { before: other_before, after: other_after }) => {
                let segments = |before: &str, after: &str| -> Vec<Option<String>> {
                    let text = |text: &str| text.split('/').map(|part| Some(part.to_owned())).collect::<Vec<_>>();
                    let (mut before, after) = (text(before), text(after));
                    before.pop();
                    before.push(None);
                    before.into_iter().chain(after.into_iter().skip(1)).collect()
                };
                let (one, other) = (segments(before, after), segments(other_before, other_after));
                let same =
                    |(one, other): (&Option<String>, &Option<String>)| one.is_none() || other.is_none() || one == other;
                one.len() == other.len() && one.iter().zip(&other).all(same)
            }
            _ => false,
        }
    }
}

/// All routes, ready to serve.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    name: String,
    /// What its events carry.
    mark: Option<Arc<str>>,
    path: Path,
    methods: Vec<Taken>,
    /// What is asked of a request.
    pub auth: Auth,
    unauthorized: Counter,
    told: LogThrottle,
}

impl Routes {
    /// Makes the routes, which reads the files of secrets. An error names the setting.
    pub fn open(config: &super::Config, metrics: &IngressMetrics) -> Result<Self, String> {
        let route = |(name, config): (String, Config)| {
            let at = place(&name);
            let path = Path::parse(&config.path).map_err(|problem| format!("`{at}.path`: {problem}"))?;
            Ok(Route {
                mark: (name != DEFAULT_INGRESS).then(|| name.as_str().into()),
                path,
                methods: config.methods,
                auth: Auth::open(&config.auth, &format!("{at}.auth"), &metrics.secrets)?,
                unauthorized: metrics.unauthorized(&name),
                told: LogThrottle::default(),
                name,
            })
        };
        let mut routes = config.all_routes().into_iter().map(route).collect::<Result<Vec<_>, String>>()?;
        // A path that is one thing only comes before one that could be many.
        routes.sort_by_key(|route| matches!(route.path, Path::Secret { .. }));
        Ok(Self { routes })
    }

    /// The route with this path, and what stands there in place of a secret.
    pub fn find<'a>(&self, path: &'a str) -> Option<(&Route, Option<&'a str>)> {
        self.routes.iter().find_map(|route| match &route.path {
            Path::Exact(own) => (own == path).then_some((route, None)),
            own => own.secret(path).map(|secret| (route, Some(secret))),
        })
    }

    /// The only path there is, if it may be told.
    pub fn only_path(&self) -> Option<&str> {
        match self.routes.as_slice() {
            [Route { path: Path::Exact(path), .. }] if !path.split('/').any(token::looks_random) => Some(path),
            _ => None,
        }
    }

    /// The secrets that lie in files.
    pub fn watched(&self) -> Vec<Arc<auth::Secrets>> {
        self.routes.iter().flat_map(|route| route.auth.watched()).collect()
    }
}

impl Route {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it takes this method.
    pub fn takes(&self, method: &Method) -> bool {
        self.methods.iter().any(|taken| taken.name() == method.as_str())
    }

    /// The methods it takes, for people and for the header field Allow.
    pub fn methods(&self) -> (String, HeaderValue) {
        let names: Vec<&str> = self.methods.iter().map(|method| method.name()).collect();
        let bring: Vec<&str> = names.iter().rev().filter(|name| **name != "HEAD").copied().collect();
        let allow = HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""));
        (bring.join(" or "), allow)
    }

    /// Marks what came by this route.
    pub fn mark(&self, events: Events) -> Events {
        match &self.mark {
            None => events,
            mark => events.into_iter().map(|event| event.by(mark.clone())).collect(),
        }
    }

    /// Counts a refused request, and tells of it once in a while.
    pub fn denied(&self, denied: Denied) {
        self.unauthorized.inc();
        if let Some(count) = self.told.should_log() {
            let Denied { check, reason } = denied;
            tracing::warn!(
                ingress = self.name,
                count,
                check,
                reason,
                "requests without the right credentials were refused"
            );
        }
    }
}

#[cfg(test)]
mod tests;
