use super::*;
use crate::config::Config as Whole;
use crate::metrics::Metrics;

fn problems(toml: &str) -> String {
    Whole::from_toml(&format!("[sinks.out]\ntype = 'stdout'\n{toml}")).unwrap_err().to_string()
}

fn config(toml: &str) -> crate::ingress::Config {
    Whole::from_toml(&format!("[sinks.out]\ntype = 'stdout'\n{toml}")).unwrap().ingress
}

fn routes(toml: &str) -> Routes {
    Routes::open(&config(toml), &Metrics::default().ingress).unwrap()
}

const SECRET_AUTH: &str = "auth = [{ type = 'path', secrets = ['12345678'] }]";

#[test]
fn a_path_leads_to_its_route_and_to_no_other() {
    let routes = routes(&format!(
        "[ingress]\npath = '/webhook/cdr'\n[ingress.routes.east]\npath = '/east'\n[ingress.routes.west]\npath = '/webhook/{{secret}}/cdr'\n{SECRET_AUTH}\n\
         [ingress.routes.known]\npath = '/webhook/known/cdr'\n[ingress.routes.last]\npath = '/{{secret}}'\n{SECRET_AUTH}\n"
    ));
    for (path, expected) in [
        ("/webhook/cdr", Some(("default", None))),
        ("/east", Some(("east", None))),
        ("/webhook/s/cdr", Some(("west", Some("s")))),
        ("/webhook/known/cdr", Some(("known", None))),
        ("/anything", Some(("last", Some("anything")))),
        ("/", None),
        ("/east/", None),
        ("/webhook//cdr", None),
        ("/webhook/a/b/cdr", None),
        ("/webhook/s/cdr/", None),
        ("*", None),
    ] {
        assert_eq!(routes.find(path).map(|(route, secret)| (route.name(), secret)), expected, "{path}");
    }
}

#[test]
fn with_other_routes_there_is_no_default_unless_its_path_is_written() {
    assert!(routes("").find("/webhook/cdr").is_some());
    let only = routes("[ingress.routes.east]\npath = '/east'\n");
    assert!(only.find("/webhook/cdr").is_none() && only.find("/east").is_some());
    let both = routes("[ingress]\npath = '/webhook/cdr'\n[ingress.routes.east]\npath = '/east'\n");
    assert!(both.find("/webhook/cdr").is_some() && both.find("/east").is_some());
    // What is meant for all must not be lost on the way.
    for key in [
        "auth = [{ type = 'bearer', secrets = ['12345678'] }]",
        "labels = { a = 'b' }",
        "source = '/x'",
        "methods = ['POST']",
    ] {
        let problem = problems(&format!("[ingress]\n{key}\n[ingress.routes.east]\npath = '/east'\n"));
        let name = key.split(' ').next().unwrap();
        assert!(problem.contains(&format!("`ingress.{name}`")) && problem.contains("ingress.path"), "{problem}");
    }
}

#[test]
fn reachable_routes_without_authentication_are_named() {
    let toml = "[ingress]\nlisten = '0.0.0.0:8080'\npath = '/a'\n[ingress.routes.b]\npath = '/b'\nauth = [{ type = 'bearer', secrets = ['12345678'] }]\n";
    assert_eq!(config(toml).unauthenticated_routes(), ["default"]);
    for loopback in ["127.0.0.1:8080", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
        assert!(config(&toml.replace("0.0.0.0:8080", loopback)).unauthenticated_routes().is_empty(), "{loopback}");
    }
}

#[test]
fn mistakes_name_the_setting_what_was_found_and_what_is_allowed() {
    for (toml, expected) in [
        ("[ingress]\npath = 'cdr'", &["`ingress.path`: found \"cdr\"", "begins with `/`"][..]),
        ("[ingress]\npath = '/a?b'", &["`ingress.path`", "'?'"]),
        ("[ingress]\npath = '/a b'", &["`ingress.path`", "' '"]),
        ("[ingress]\npath = '/{key}'", &["`ingress.path`", "{secret}"]),
        (
            "[ingress]\npath = '/a{secret}'\nauth = [{ type = 'path', secrets = ['12345678'] }]",
            &["`ingress.path`", "whole segment"],
        ),
        ("[ingress]\npath = '/{secret}/{secret}'", &["`ingress.path`", "once"]),
        ("[ingress]\npath = '/{secret}'", &["`ingress.path`", "`auth` of the type \"path\""]),
        ("[ingress]\nauth = [{ type = 'path', secrets = ['12345678'] }]", &["`ingress.auth.0.type`", "{secret}"]),
        (
            "[ingress]\npath = '/a'\n[ingress.routes.b]\npath = '/a'",
            &["`ingress.path`: found \"/a\"", "`ingress.routes.b.path`"],
        ),
        (
            "[ingress.routes.a]\npath = '/{secret}/b'\nauth = [{ type = 'path', secrets = ['12345678'] }]\n[ingress.routes.b]\npath = '/a/{secret}'\nauth = [{ type = 'path', secrets = ['12345678'] }]",
            &["`ingress.routes.b.path`", "`ingress.routes.a.path`"],
        ),
        ("[ingress.routes.A]\npath = '/a'", &["`ingress.routes.A`", "a-z 0-9 _ -"]),
        ("[ingress.routes.default]\npath = '/a'", &["`ingress.routes.default`", "`[ingress]` itself"]),
        ("[ingress.routes.a]\nlabels = {}", &["`ingress.routes.a.path`: is missing"]),
        (
            "[ingress.routes.a]\npath = '/a'\nlisten = 'x'",
            &["`ingress.routes.a.listen`: is unknown; allowed are path, methods"],
        ),
        ("[ingress]\nmethods = ['PATCH']", &["`ingress.methods", "PATCH", "GET, HEAD, POST, PUT"]),
        ("[ingress]\nmethods = ['HEAD']", &["`ingress.methods`", "GET, HEAD, POST, PUT"]),
        ("[ingress]\nlabels = { 'a b' = 'c' }", &["`ingress.labels.a b`", "a-z 0-9 _ -"]),
        (
            "[ingress]\nauth = [{ type = 'magic' }]",
            &["`ingress.auth.0.type`: found \"magic\"; allowed are path, query"],
        ),
        ("[ingress]\nauth = [{ secrets = ['12345678'] }]", &["`ingress.auth.0.type`: is missing"]),
        (
            "[ingress]\nauth = [{ type = 'bearer', secret = '12345678' }]",
            &["`ingress.auth.0.secret`: is unknown; allowed are secrets, secret_files"],
        ),
        ("[ingress]\nauth = [{ type = 'bearer' }]", &["`ingress.auth.0.secret_files`: is missing"]),
        (
            "[ingress]\nauth = [{ type = 'bearer', secrets = ['12345678'] }, { type = 'basic', username = 'a', secrets = ['12345678'] }]",
            &["`ingress.auth`", "Authorization"],
        ),
        ("[ingress]\nsource = '{a'", &["`sinks.out.source`", "not closed"]),
        (
            "key = '{query.team}'\n[ingress]\nauth = [{ type = 'github', secrets = ['12345678'] }]",
            &["`sinks.out.key`", "{query.team} can never have a value", "does not cover the query"],
        ),
        ("[sinks.b]\ntype = 'stdout'\nkey = '{labels.region}'", &["`sinks.b.key`", "`region`", "there are: none"]),
    ] {
        let problem = problems(toml);
        assert!(expected.iter().all(|text| problem.contains(text)), "{problem} lacks one of {expected:?}");
        assert!(!problem.contains("12345678"), "{problem}");
    }
}
