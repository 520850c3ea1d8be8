//! What the routes of the ingress mean to the rest of the configuration.

use super::error::origin;
use crate::ingress::{self, routes};
use figment::Figment;

/// Without any route there is one at the usual path.
pub fn complete(mut ingress: ingress::Config) -> ingress::Config {
    if ingress.routes.is_empty() && ingress.path.is_none() {
        ingress.path = Some(routes::DEFAULT_PATH.to_owned());
    }
    ingress
}

/// What is wrong with the routes, and where that comes from.
pub fn problems(ingress: &ingress::Config, figment: &Figment) -> Vec<String> {
    let problems = ingress.route_problems().into_iter();
    problems.map(|(key, problem)| format!("{}`{key}`: {problem}", place(figment, &key))).collect()
}

/// Where `key` was set; figment knows no elements of lists, so that what holds it has to do.
fn place(figment: &Figment, key: &str) -> String {
    let mut holder = key;
    loop {
        match (figment.find_metadata(holder), holder.rsplit_once('.')) {
            (None, Some((outer, _))) => holder = outer,
            (metadata, _) => return origin(metadata, &[holder]),
        }
    }
}
