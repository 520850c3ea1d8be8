//! The routes of the ingress: path, methods, authentication and labels of each.

use super::auth::{self, Auth, Denied};
use super::tls;
use crate::event::{DEFAULT_INGRESS, Event, Events};
use crate::log_throttle::LogThrottle;
use crate::metrics::IngressMetrics;
use crate::route::{Origin, Origins};
use hyper::header::HeaderValue;
use prometheus_client::metrics::counter::Counter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Where webhooks are taken unless something else is configured.
pub const DEFAULT_PATH: &str = "/webhook/cdr";
/// The segment of a configured path in whose place a request has a secret.
const SECRET: &str = "{secret}";

/// `[ingress.routes.NAME]`, and the same keys of `[ingress]` for the route `default`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its path.
    pub path: String,
    /// The methods that are taken; see [`default_methods`].
    #[serde(default)]
    pub methods: Option<Vec<Method>>,
    /// The checks of a request, all of which have to pass.
    #[serde(default)]
    pub auth: Vec<auth::Config>,
    /// The values of `{labels.NAME}` in templates.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Template of the CloudEvents source, in place of the sink's own.
    #[serde(default)]
    pub source: Option<String>,
}

/// A method that a route may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// The event is in the query.
    Get,
    /// A probe: nothing is stored.
    Head,
    /// The events are in the body.
    Post,
    /// The events are in the body.
    Put,
}

/// The methods of a route that configures none. The event of a GET is its query, which a signature over the body does not cover.
pub fn default_methods(auth: &[auth::Config]) -> Vec<Method> {
    if auth.iter().any(auth::Config::leaves_query_unsigned) {
        vec![Method::Post]
    } else {
        vec![Method::Get, Method::Head, Method::Post]
    }
}

impl Method {
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

impl Config {
    /// The methods that are taken.
    pub fn methods(&self) -> Vec<Method> {
        self.methods.clone().unwrap_or_else(|| default_methods(&self.auth))
    }

    /// Checks the settings of the route at `at`. Adds a key and a problem for each mistake; files are not read.
    fn check(&self, at: &str, problems: &mut Vec<(String, String)>) {
        let mut problem = |key: String, text: String| problems.push((format!("{at}.{key}"), text));
        let secret_check = self.auth.iter().position(|auth| matches!(auth, auth::Config::Path(_)));
        match (Path::parse(&self.path), secret_check) {
            (Err(text), _) => problem("path".into(), format!("found {:?}; {text}", self.path)),
            (Ok(path), Some(index)) if !path.has_secret() => problem(
                format!("auth.{index}.type"),
                format!(
                    "found \"path\", but `{at}.path` has no segment {SECRET}; for example \"/webhook/{SECRET}/cdr\""
                ),
            ),
            (Ok(path), None) if path.has_secret() => {
                problem("path".into(), format!("found {:?}; {SECRET} needs an `auth` of the type \"path\"", self.path))
            }
            _ => {}
        }
        let methods = self.methods();
        if methods.iter().all(|method| *method == Method::Head) {
            problem("methods".into(), "none of them brings webhooks; allowed are GET, HEAD, POST, PUT".into());
        }
        let unsigned = self.auth.iter().find(|auth| auth.leaves_query_unsigned());
        if let (Some(auth), true) = (unsigned, methods.contains(&Method::Get)) {
            let text = format!(
                "found GET, whose event is the query, and the signature of `auth` {:?} covers the body alone; allowed are POST, PUT, HEAD",
                auth.name()
            );
            problem("methods".into(), text);
        }
        for label in self.labels.keys().filter(|label| !is_name(label)) {
            problem(format!("labels.{label}"), "the name of a label has 1 to 64 characters of a-z 0-9 _ -".into());
        }
        if self.auth.iter().filter(|auth| auth.uses_authorization()).count() > 1 {
            let text = "asks for the header field Authorization more than once; put several valid tokens into `secrets` or `secret_files` of one check";
            problem("auth".into(), text.into());
        }
        for (index, auth) in self.auth.iter().enumerate() {
            if let Err(auth::Problem { key, text }) = auth.check() {
                problem(format!("auth.{index}.{key}"), text);
            }
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

    /// Fills in path and methods where none are set.
    pub fn complete(&mut self) {
        if self.routes.is_empty() && self.path.is_none() {
            self.path = Some(DEFAULT_PATH.to_owned());
        }
        if self.path.is_some() {
            self.methods.get_or_insert_with(|| default_methods(&self.auth));
        }
        for route in self.routes.values_mut() {
            route.methods.get_or_insert_with(|| default_methods(&route.auth));
        }
    }

    /// Whether the `appid` checks of the route take these events. Repeated for a rejected body that is decoded later.
    pub fn takes(&self, route: &str, events: &[Event]) -> bool {
        let own = (route == DEFAULT_INGRESS).then_some(&self.auth);
        let auth = self.routes.get(route).map(|route| &route.auth).or(own);
        auth.is_none_or(|auth| auth.iter().all(|auth| auth.takes(events)))
    }

    /// Labels and source of each route.
    pub fn origins(&self) -> Origins {
        let routes = self.all_routes().into_iter();
        let origin = |route: Config| Origin {
            secret_parameters: route.auth.iter().filter_map(auth::Config::secret_parameter).cloned().collect(),
            ignores_query: route.auth.iter().any(auth::Config::leaves_query_unsigned),
            labels: route.labels,
            source: route.source,
            is_reconciled: false,
        };
        routes.map(|(name, route)| (name, origin(route))).collect()
    }

    /// The routes without authentication, if other hosts can reach the listener without a client certificate.
    pub fn unauthenticated_routes(&self) -> Vec<String> {
        let asks = |tls: &tls::Config| tls.client_ca_file.is_some() && tls.client_auth == tls::ClientAuth::Required;
        let reachable = !self.listen.ip().to_canonical().is_loopback() && !self.tls.as_ref().is_some_and(asks);
        let routes = self.all_routes().into_iter();
        routes.filter(|(_, route)| reachable && route.auth.is_empty()).map(|(name, _)| name).collect()
    }

    /// The problems of the routes, by key. Files are not read.
    pub fn route_problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let unused = [
            ("auth", !self.auth.is_empty()),
            ("labels", !self.labels.is_empty()),
            ("source", self.source.is_some()),
            ("methods", self.methods.is_some()),
        ];
        for (key, _) in unused.into_iter().filter(|(_, set)| *set && self.path.is_none()) {
            let text = "belongs to the route `default`, which exists beside other routes only with `ingress.path`; set that, or move this to \
                        `[ingress.routes.NAME]`";
            problems.push((format!("ingress.{key}"), text.to_owned()));
        }
        for name in self.routes.keys().filter(|name| !is_name(name) || *name == DEFAULT_INGRESS) {
            let text = "the name of a route has 1 to 64 characters of a-z 0-9 _ -, and is not `default`, which is `[ingress]` itself";
            problems.push((format!("ingress.routes.{name}"), text.to_owned()));
        }
        let mut paths: Vec<(String, Path)> = Vec::new();
        for (name, route) in self.all_routes() {
            let at = settings_of(&name);
            route.check(&at, &mut problems);
            let Ok(path) = Path::parse(&route.path) else { continue };
            if let Some((other, _)) = paths.iter().find(|(_, other)| other.overlaps(&path)) {
                let text =
                    format!("found {:?}, which also matches `{other}.path`; each route needs its own", route.path);
                problems.push((format!("{at}.path"), text));
            }
            paths.push((at, path));
        }
        problems
    }
}

/// The table with the settings of the route called `name`.
fn settings_of(name: &str) -> String {
    if name == DEFAULT_INGRESS { "ingress".to_owned() } else { format!("ingress.routes.{name}") }
}

/// Whether a route, a label or a reconciliation can have this name.
pub fn is_name(name: &str) -> bool {
    let legal = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '_' | '-');
    !name.is_empty() && name.len() <= 64 && name.chars().all(legal)
}

/// A route's path by its segments; `None` stands for the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Path(Vec<Option<String>>);

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("a path begins with `/`".into());
        }
        let illegal = |character: &char| !matches!(character, '!'..='~') || "?#".contains(*character);
        if let Some(illegal) = text.chars().find(illegal) {
            return Err(format!("{illegal:?} cannot be in a path; write it percent-encoded, and no query"));
        }
        let segments = text.split('/').map(|segment| match segment {
            SECRET => Ok(None),
            other if other.contains(['{', '}']) => {
                Err(format!("only {SECRET} as a whole segment may have braces, as in \"/webhook/{SECRET}/cdr\""))
            }
            other => Ok(Some(other.to_owned())),
        });
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        if segments.iter().filter(|segment| segment.is_none()).count() > 1 {
            return Err(format!("{SECRET} may appear once"));
        }
        Ok(Self(segments))
    }

    fn has_secret(&self) -> bool {
        self.0.contains(&None)
    }

    /// If this is the path of the request: the secret in it, if it has one.
    fn matches<'a>(&self, path: &'a str) -> Option<Option<&'a str>> {
        let mut secret = None;
        let mut segments = path.split('/');
        for own in &self.0 {
            match (own, segments.next()?) {
                (Some(own), segment) if own == segment => {}
                (None, segment) if !segment.is_empty() => secret = Some(segment),
                _ => return None,
            }
        }
        if segments.next().is_none() { Some(secret) } else { None }
    }

    /// Whether one path could match both. Paths without a secret are tried first, so they may look like the secret of another.
    fn overlaps(&self, other: &Self) -> bool {
        let same = |(one, other): (&Option<String>, &Option<String>)| one.is_none() || other.is_none() || one == other;
        self.has_secret() == other.has_secret()
            && self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(same)
    }
}

/// All routes, ready to serve.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
    /// The query parameters that hold secrets of any route.
    secret_parameters: Vec<String>,
}

/// One route.
#[derive(Debug)]
pub struct Route {
    name: String,
    /// The name that its events carry; none for the default route.
    mark: Option<Arc<str>>,
    path: Path,
    methods: Vec<Method>,
    /// The checks of a request.
    pub auth: Auth,
    unauthorized: Counter,
    throttle: LogThrottle,
}

impl Routes {
    /// Makes the routes, which reads the files of secrets. An error names the setting.
    pub fn open(config: &super::Config, metrics: &IngressMetrics) -> Result<Self, String> {
        let route = |(name, config): (String, Config)| {
            let at = settings_of(&name);
            Ok(Route {
                mark: (name != DEFAULT_INGRESS).then(|| name.as_str().into()),
                path: Path::parse(&config.path).map_err(|problem| format!("`{at}.path`: {problem}"))?,
                methods: config.methods(),
                auth: Auth::open(&config.auth, &format!("{at}.auth"), &metrics.secrets)?,
                unauthorized: metrics.unauthorized(&name),
                throttle: LogThrottle::default(),
                name,
            })
        };
        let mut routes = config.all_routes().into_iter().map(route).collect::<Result<Vec<_>, String>>()?;
        routes.sort_by_key(|route| route.path.has_secret());
        let secret_parameters = routes.iter().flat_map(|route| route.auth.secret_parameters()).cloned().collect();
        Ok(Self { routes, secret_parameters })
    }

    /// The route with this path, and the secret in the path, if it has one.
    pub fn find<'a>(&self, path: &'a str) -> Option<(&Route, Option<&'a str>)> {
        self.routes.iter().find_map(|route| Some((route, route.path.matches(path)?)))
    }

    /// The secrets that are in files.
    pub fn watched(&self) -> Vec<Arc<auth::Secrets>> {
        self.routes.iter().flat_map(|route| route.auth.watched()).collect()
    }

    /// The query without the secrets of all routes: a sender may show one to the wrong route.
    pub fn strip_secrets<'a>(&self, query: &'a str) -> Cow<'a, str> {
        auth::strip(query, &self.secret_parameters)
    }
}

impl Route {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it takes this method.
    pub fn takes(&self, method: &hyper::Method) -> bool {
        self.methods.iter().any(|taken| taken.name() == method.as_str())
    }

    /// The methods it takes, for people and for the header field Allow.
    pub fn methods(&self) -> (String, HeaderValue) {
        let names: Vec<&str> = self.methods.iter().map(|method| method.name()).collect();
        let bring: Vec<&str> = names.iter().rev().filter(|name| **name != "HEAD").copied().collect();
        let allow = HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""));
        (bring.join(" or "), allow)
    }

    /// Marks the events with the name of the route.
    pub fn mark(&self, events: Events) -> Events {
        match &self.mark {
            None => events,
            mark => events.into_iter().map(|event| event.by(mark.clone())).collect(),
        }
    }

    /// Counts a request without the right credentials, and logs it, throttled.
    pub fn denied(&self, denied: Denied, peer: IpAddr) {
        self.unauthorized.inc();
        if let Some(count) = self.throttle.should_log() {
            let Denied { check, reason } = denied;
            tracing::warn!(ingress = self.name, %peer, check, reason, count, "refused requests without the right credentials");
        }
    }
}

#[cfg(test)]
mod tests;
