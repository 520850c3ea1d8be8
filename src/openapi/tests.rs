use super::*;
use std::collections::BTreeSet;

const SINK: &str = "[sinks.out]\ntype = 'stdout'\n";
const ALL: &str = include_str!("../../tests/openapi/every.toml");

fn described(toml: &str) -> Value {
    let sink = if toml.contains("[sinks") { "" } else { SINK };
    let config = Config::from_toml(&format!("{toml}{sink}")).unwrap();
    serde_json::from_str(&document(&config, config.ingress.listen)).unwrap()
}

fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// Every object within, with the name it has.
fn walk<'a>(value: &'a Value, visit: &mut impl FnMut(&'a str, &'a Value)) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            visit(name, value);
            walk(value, visit);
        }),
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[test]
fn nothing_secret_is_shown() {
    let shown = described(ALL).to_string();
    assert!(!shown.contains("hidden") && !shown.contains("192.0.2"), "{shown}");
}

#[test]
fn credentials_are_those_of_the_route() {
    let api = described(ALL);
    let schemes = &api["components"]["securitySchemes"];
    for (name, expected) in [
        ("query.auth.0", json!({ "type": "apiKey", "in": "query", "name": "token" })),
        ("header.auth.0", json!({ "type": "apiKey", "in": "header", "name": "x-webhook-token" })),
        ("bearer.auth.0", json!({ "type": "http", "scheme": "bearer" })),
        ("basic.auth.0", json!({ "type": "http", "scheme": "basic" })),
        ("slack.auth.0", json!({ "type": "apiKey", "in": "header", "name": "x-slack-signature" })),
        ("shopify.auth.0", json!({ "type": "apiKey", "in": "header", "name": "x-shopify-hmac-sha256" })),
        ("shopify.auth.1", json!({ "type": "apiKey", "in": "header", "name": "x-hub-signature-256" })),
        ("standard.auth.0", json!({ "type": "apiKey", "in": "header", "name": "webhook-signature" })),
        ("twilio.auth.0", json!({ "type": "apiKey", "in": "header", "name": "x-twilio-signature" })),
        ("clientCertificate", json!({ "type": "mutualTLS" })),
    ] {
        let mut scheme = schemes[name].clone();
        assert!(scheme.as_object_mut().unwrap().remove("description").is_some(), "{name}");
        assert_eq!(scheme, expected, "{name}");
    }
    assert_eq!(names(schemes).len(), 10, "{schemes}");
    let text = schemes["slack.auth.0"]["description"].as_str().unwrap();
    assert_eq!(
        text,
        "The HMAC-SHA-256 of `v0:{timestamp}:{body}` in hexadecimal digits behind `v0=`; `{body}` is the body as it is sent."
    );

    // All that a route asks for is asked for at once.
    let security = |path: &str| &api["paths"][path]["post"]["security"];
    let certified = json!([{ "clientCertificate": [] }]);
    assert_eq!(*security("/webhook/own"), certified);
    assert_eq!(*security("/webhook/{secret}/cdr"), certified);
    assert_eq!(
        *security("/webhook/shopify"),
        json!([{ "shopify.auth.0": [], "shopify.auth.1": [], "clientCertificate": [] }])
    );
    let parameters = |path: &str| {
        let parameters = api["paths"][path]["parameters"].as_array().unwrap();
        parameters.iter().map(|parameter| parameter["name"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(parameters("/webhook/{secret}/cdr"), ["secret"]);
    assert_eq!(parameters("/webhook/slack"), ["x-slack-request-timestamp"]);
    assert_eq!(parameters("/webhook/standard"), ["webhook-id", "webhook-timestamp"]);

    let optional = described(&ALL.replace("client_ca_file", "client_auth = \"optional\", client_ca_file"));
    let either = json!([{ "bearer.auth.0": [] }, { "bearer.auth.0": [], "clientCertificate": [] }]);
    assert_eq!(optional["paths"]["/webhook/bearer"]["post"]["security"], either);
}

#[test]
fn methods_and_answers_are_those_of_the_route() {
    let api = described(ALL);
    let item = |path: &str| &api["paths"][path];
    assert_eq!(names(item("/webhook/slack")), ["servers", "summary", "parameters", "post"].into());
    assert!(names(item("/webhook/bearer")).is_superset(&["get", "head", "post"].into()));
    let answers = |path: &str, method: &str| names(&item(path)[method]["responses"]);
    let post = BTreeSet::from(["200", "400", "405", "408", "413", "415", "431", "503"]);
    assert_eq!(answers("/webhook/bearer", "post"), &post | &["401"].into());
    assert_eq!(answers("/webhook/{secret}/cdr", "post"), &post | &["404"].into());
    assert_eq!(answers("/webhook/bearer", "head"), ["200", "401", "405", "415", "431", "503"].into());
    // Only who is asked to log in is told how.
    let headers = |path: &str| names(&item(path)["post"]["responses"]["401"]["headers"]);
    assert_eq!(headers("/webhook/basic"), ["WWW-Authenticate"].into());
    assert_eq!(headers("/webhook/query"), [].into());

    let delivered = described("[ingress]\nack = 'delivered'\n");
    assert_eq!(names(&delivered["paths"]["/webhook/cdr"]["post"]["responses"]), &post | &["202"].into());
    assert_eq!(delivered["components"]["schemas"]["Stored"]["required"].as_array().unwrap().len(), 4);
}

#[test]
fn bounds_are_those_of_the_configuration() {
    let api = described(
        "[ingress]\nmax_body = '2KiB'\nmax_unpacked_body = '3KiB'\ndecode = { max_events = 5, max_fields = 6, json_fields = [] }\n",
    );
    let schemas = &api["components"]["schemas"];
    assert_eq!(
        (&schemas["Events"]["anyOf"][1]["maxItems"], &schemas["Event"]["maxProperties"]),
        (&5.into(), &6.into())
    );
    let body = &api["paths"]["/webhook/cdr"]["post"]["requestBody"];
    let text = body["description"].as_str().unwrap();
    assert!(text.contains("2048") && text.contains("3072") && text.contains("gzip"), "{text}");
}

#[test]
fn servers_can_be_reached() {
    for (listen, address, url, host) in [
        ("127.0.0.1:8080", "127.0.0.1:4711", "http://{host}:4711", "127.0.0.1"),
        ("0.0.0.0:80", "0.0.0.0:80", "http://{host}:80", "localhost"),
        ("[::]:8080", "[::]:8080", "http://{host}:8080", "localhost"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080", "http://{host}:8080", "[2001:db8::1]"),
    ] {
        let config = Config::from_toml(&format!("[ingress]\nlisten = '{listen}'\n{SINK}")).unwrap();
        let api: Value = serde_json::from_str(&document(&config, address.parse().unwrap())).unwrap();
        assert_eq!(api["servers"][0]["url"], url);
        assert_eq!(api["servers"][0]["variables"]["host"]["default"], host);
        assert_eq!(api["paths"]["/webhook/cdr"]["servers"], api["servers"]);
        assert_eq!(api["paths"]["/livez"]["servers"][0]["url"], "/");
    }
    assert_eq!(described(ALL)["servers"][0]["url"], "https://{host}:8443");
}

#[test]
fn a_route_at_the_path_of_a_page_is_the_one_described() {
    let api = described("[ingress]\npath = '/metrics'\n");
    assert_eq!(api["paths"]["/metrics"]["post"]["operationId"], "ingress_default_post");
    assert_eq!(names(&api["paths"]), ["/livez", "/metrics", "/openapi.json", "/readyz", "/readyz/ingress"].into());
}

#[test]
fn what_is_referred_to_is_there_and_names_are_unique() {
    let api = described(ALL);
    let (mut ids, mut references) = (Vec::new(), 0);
    walk(&api, &mut |name, value| match (name, value.as_str()) {
        ("$ref", Some(target)) => {
            references += 1;
            assert!(api.pointer(target.strip_prefix('#').unwrap()).is_some(), "{target}");
        }
        ("operationId", Some(id)) => ids.push(id),
        ("security", None) => value.as_array().unwrap().iter().flat_map(names).for_each(|scheme| {
            assert!(api["components"]["securitySchemes"].get(scheme).is_some(), "{scheme}");
        }),
        _ => {}
    });
    assert!(references > 100, "{references}");
    let unique: BTreeSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), unique.len()), (10 * 3 - 2 + 5 * 2, ids.len()), "{ids:?}");
}
