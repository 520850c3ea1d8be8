use super::*;

fn problems(toml: &str) -> String {
    Config::from_toml(toml).unwrap_err().to_string()
}

fn layered(toml: &str, variables: &[(&str, &str)], settings: &[&str]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    let figment = environment::merge_variables(Figment::from(Toml::string(toml)), variables);
    Config::extract(&environment::merge_settings(figment, &settings)?, &Registry::default())
}

const STDOUT: &str = "[sinks.out]\ntype = 'stdout'\n";

#[test]
fn the_embedded_default_is_what_the_code_defaults_to() {
    let config = Config::from_toml(EMBEDDED).unwrap();
    assert_eq!(config.ingress.listen, webhooks::Config::default().listen);
    assert_eq!(config.ingress.path.as_deref(), Some("/webhook/cdr"));
    assert_eq!(config.spool.max_size, spool::Config::default().max_size);
    assert!(config.sinks["stdout"].destination.type_name() == "stdout");
}

#[test]
fn layers_go_on_top_of_each_other() {
    let toml =
        format!("{STDOUT}[spool]\npath = 'a'\nmax_size = '64MiB'\n[sinks.kafka]\ntype = 'kafka'\nbrokers = 'a:1'\n");
    let variables = [
        ("CDRELAY_SPOOL__PATH", "b"),
        ("CDRELAY_SPOOL__MAX_SIZE", "128MiB"),
        ("CDRELAY_SINKS__KAFKA__BROKERS", "[\"b:1\",\"c:1\"]"),
        ("CDRELAY_SINKS__KAFKA__REQUIRED", "false"),
        ("CDRELAY_SINKS__KAFKA__SASL__MECHANISM", "PLAIN"),
        ("CDRELAY_SINKS__KAFKA__SASL__USERNAME", "1234"),
        ("CDRELAY_SINKS__KAFKA__LIBRDKAFKA__SOCKET__TIMEOUT__MS", "1234"),
        ("CDRELAY_SINKS__KAFKA__WHEN", "true"),
        ("CDRELAY_SINKS__KAFKA__SASL__PASSWORD", "007"),
        ("CDRELAY_PORT", "tcp://10.0.0.1:8080"),
        ("CDRELAY_SERVICE_HOST", "10.0.0.1"),
    ];
    let config = layered(&toml, &variables, &["spool.path=c", "sinks.kafka.max_in_flight=7"]).unwrap();
    assert_eq!((config.spool.path.to_str(), config.spool.max_size), (Some("c"), bytesize::ByteSize::mib(128)));
    let kafka = &config.sinks["kafka"];
    assert_eq!((kafka.dispatch.required, kafka.dispatch.max_in_flight), (false, 7));
    let settings = kafka.destination.settings::<crate::sink::kafka::Config>().unwrap();
    assert_eq!(settings.brokers.0, ["b:1", "c:1"]);
    assert_eq!(settings.sasl.as_ref().unwrap().username, "1234");
    assert_eq!(settings.librdkafka.0["socket.timeout.ms"].reveal(), "1234");
    assert_eq!(kafka.route.when.as_deref(), Some("true"));
    assert_eq!(settings.sasl.as_ref().unwrap().password.as_ref().unwrap().reveal(), "007");
}

#[test]
fn errors_name_origin_key_finding_and_remedy() {
    let unknown = problems(&format!("{STDOUT}[spool]\npaht = 'x'"));
    assert!(unknown.contains("`spool.paht`: is unknown; allowed are path, max_size"), "{unknown}");
    let unknown = problems("[sinks.out]\ntype = 'stdout'\nbrokers = 'x'");
    assert!(unknown.contains("`sinks.out.brokers`: is unknown; allowed are type, "), "{unknown}");
    let missing = problems("[sinks.k]\ntype = 'kafka'");
    assert!(missing.contains("`sinks.k.brokers`: is missing"), "{missing}");
    let wrong = problems("[sinks.k]\ntype = 'kafak'");
    assert!(wrong.contains("`sinks.k.type`") && wrong.contains("kafak") && wrong.contains("stdout"), "{wrong}");
    let untyped = problems("[sinks.k]\nbrokers = 'x'");
    assert!(untyped.contains("`sinks.k.type`: is missing"), "{untyped}");
    for found in ["5", "'soon'", "'-5s'"] {
        let period = problems(&format!("{STDOUT}[shutdown]\ngrace_period = {found}"));
        assert!(
            period.contains("`shutdown.grace_period`: found ") && period.contains("allowed is a duration"),
            "{period}"
        );
    }
    let nested = problems("[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\ntls.ca = 'x'");
    assert!(nested.contains("`sinks.k.tls.ca`: is unknown; allowed are enabled, ca_file"), "{nested}");
    let period = problems("[sinks.k]\ntype = 'kafka'\nbrokers = 'a:1'\nlinger = 5");
    assert!(period.contains("`sinks.k.linger`: found"), "{period}");
    let size = problems(&format!("{STDOUT}[spool]\nmax_size = 'big'"));
    assert!(size.contains("`spool.max_size`") && size.contains("1GiB"), "{size}");
    let address = problems(&format!("{STDOUT}[admin]\nlisten = 'here'"));
    assert!(address.contains("`admin.listen`") && address.contains("127.0.0.1:8080"), "{address}");
    for found in ["a=b=c", "warning", ""] {
        let level = problems(&format!("{STDOUT}[log]\nlevel = '{found}'"));
        assert!(level.contains(&format!("`log.level`: found {found:?}; allowed is off, error")), "{level}");
    }
    let template = problems("[sinks.out]\ntype = 'stdout'\nkey = '{team'");
    assert!(template.contains("`sinks.out.key`") && template.contains("character 1"), "{template}");
    let subject = problems("[sinks.n]\ntype = 'nats'\nsubject = 'a..b'");
    assert!(subject.contains("`sinks.n.subject`"), "{subject}");
    let name = problems("[sinks.'A b']\ntype = 'stdout'");
    assert!(name.contains("a sink's name"), "{name}");
    assert!(problems("").contains("no sink is configured"));
    assert!(problems("[sinks.").contains("TOML"), "{}", problems("[sinks."));
    let both = problems("[sinks.a]\ntype = 'x'\n[sinks.b]\ntype = 'y'");
    assert_eq!(both.lines().count(), 2, "{both}");
}

#[test]
fn an_old_key_is_refused_with_its_new_name_wherever_it_is_set() {
    let renamed = "`shutdown.grace`: was renamed to `shutdown.grace_period`";
    let file = problems(&format!("{STDOUT}[shutdown]\ngrace = '5s'"));
    assert!(file.ends_with(renamed), "{file}");
    let variable = layered(STDOUT, &[("CDRELAY_SHUTDOWN__GRACE", "5s")], &[]).unwrap_err().to_string();
    assert_eq!(variable, format!("environment variable CDRELAY_SHUTDOWN__GRACE: {renamed}"));
    let set = layered(STDOUT, &[], &["shutdown.grace=5s"]).unwrap_err().to_string();
    assert_eq!(set, format!("--set: {renamed}"));
}

#[test]
fn a_period_beyond_all_reckoning_is_refused() {
    for (table, key) in [
        ("shutdown", "grace_period"),
        ("shutdown", "drain_delay"),
        ("shutdown", "drain"),
        ("ingress", "delivery_timeout"),
        ("spool", "dedup_window"),
        ("spool", "names_window"),
        ("spool", "legs_window"),
        ("spool", "append_timeout"),
    ] {
        let found = problems(&format!("{STDOUT}[{table}]\n{key} = '5124095576030430h'"));
        assert!(found.contains(&format!("`{table}.{key}`: found")) && found.contains("876000h at the most"), "{found}");
        assert!(Config::from_toml(&format!("{STDOUT}[{table}]\n{key} = '876000h'")).is_ok());
    }
}

#[test]
fn the_environment_is_named_as_the_origin() {
    let error = layered(STDOUT, &[("CDRELAY_SPOOL__MAX_SIZE", "1KiB")], &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("environment variable CDRELAY_SPOOL__MAX_SIZE: `spool.max_size`: found 1.0 KiB"),
        "{error}"
    );
    let error = layered(STDOUT, &[("CDRELAY_SPOL__PATH", "x")], &[]).unwrap_err().to_string();
    assert!(error.contains("`spol`: is unknown"), "{error}");
    let error = layered(STDOUT, &[], &["ingress.listen=8080"]).unwrap_err().to_string();
    assert!(error.starts_with("--set: `ingress.listen`"), "{error}");
    assert!(layered(STDOUT, &[], &["nothing"]).unwrap_err().to_string().contains("KEY=VALUE"));
}

#[test]
fn routes_and_who_may_send_come_from_the_environment_too() {
    let variables = [
        ("CDRELAY_INGRESS__ROUTES__EAST__PATH", "/east"),
        ("CDRELAY_INGRESS__ROUTES__EAST__LABELS__REGION", "7"),
        (
            "CDRELAY_INGRESS__ROUTES__EAST__AUTH",
            "[{type=\"bearer\",secrets=[\"0123456789\"]},{type=\"appid\",appids=[7]}]",
        ),
    ];
    let config = layered(STDOUT, &variables, &[]).unwrap();
    let east = &config.ingress.routes["east"];
    assert_eq!((config.ingress.path, east.path.as_str(), east.labels["region"].as_str()), (None, "/east", "7"));
    assert_eq!(east.auth[0].secrets().unwrap().0.0[0].reveal(), "0123456789");
    assert_eq!(format!("{:?}", east.auth[1]), "AppId(AppIds { appids: List([\"7\"]) })");
    let wrong = [variables[0], ("CDRELAY_INGRESS__ROUTES__EAST__AUTH", "[{type=\"bearer\",secret=[\"0123456789\"]}]")];
    let error = layered(STDOUT, &wrong, &[]).unwrap_err().to_string();
    assert!(error.contains("environment variable CDRELAY_INGRESS__ROUTES__EAST__AUTH"), "{error}");
    assert!(
        error.contains("is unknown; allowed are secrets, secret_files") && !error.contains("0123456789"),
        "{error}"
    );
}

#[test]
fn a_mistake_in_the_syntax_is_located_and_not_shown_for_it_may_be_a_secret() {
    for (toml, expected) in [
        ("[sinks.k.sasl]\npassword = 'hunter2", "line 2, column"),
        ("[sinks.k]\nsasl.password = 'hunter2'\nsasl = 'hunter2'", "line 3, column 1: duplicate key `sasl`"),
    ] {
        let error = problems(toml);
        assert!(error.contains(expected) && !error.contains("hunter2") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn contradictions_are_found() {
    for (toml, key) in [
        ("[ingress]\npath = 'cdr'", "ingress.path"),
        ("[ingress]\nbody_memory = '1KiB'", "ingress.body_memory"),
        ("[ingress]\nmax_decompressed_body = '5MiB'", "ingress.body_memory"),
        ("[ingress]\nmax_decompressed_body = '65MiB'", "ingress.max_decompressed_body"),
        ("[ingress]\nmax_decompressed_body = '1MiB'\n[spool]\nmax_size = '3MiB'", "spool.max_size"),
        ("[ingress]\nmax_connections = 0", "ingress.max_connections"),
        ("[ingress]\nmax_connections_per_peer = 0", "ingress.max_connections_per_peer"),
        ("[ingress]\nlisten = '127.0.0.1:9090'", "admin.listen"),
        ("[ingress.decode]\nmax_depth = 1000", "ingress.decode.max_depth"),
        ("[spool]\nsegment_size = '1GiB'", "spool.segment_size"),
        ("max_in_flight = 0", "sinks.out.max_in_flight"),
        ("max_in_flight_bytes = '0'", "sinks.out.max_in_flight_bytes"),
    ] {
        let error = problems(&format!("{STDOUT}{toml}"));
        assert!(error.contains(&format!("`{key}`")), "{toml}: {error}");
    }
}

#[test]
fn client_certificates_need_their_authorities() {
    let tls =
        |more: &str| Config::from_toml(&format!("{STDOUT}[ingress.tls]\ncert_file = 'c'\nkey_file = 'k'\n{more}"));
    for more in ["", "client_ca_file = 'a'", "client_ca_file = 'a'\nclient_auth = 'optional'\nmin_version = '1.3'"] {
        tls(more).unwrap();
    }
    let problem = |more: &str| tls(more).unwrap_err().to_string();
    let alone = problem("client_auth = 'optional'");
    assert!(alone.contains("`ingress.tls.client_auth`: is of use only with `ingress.tls.client_ca_file`"), "{alone}");
    let version = problem("min_version = '1.1'");
    assert!(version.contains("`ingress.tls.min_version`: found \"1.1\"; allowed are 1.2, 1.3"), "{version}");
    let missing = problems(&format!("{STDOUT}[ingress.tls]\ncert_file = 'c'"));
    assert!(missing.contains("`ingress.tls.key_file`: is missing"), "{missing}");
}

#[test]
fn proxies_are_networks_and_there_is_one_at_least() {
    let problems = |list: &str| problems(&format!("{STDOUT}[ingress.proxy_protocol]\n{list}"));
    assert!(problems("").contains("`ingress.proxy_protocol.trusted_proxies`: is missing"));
    assert!(problems("trusted_proxies = []").contains("`ingress.proxy_protocol.trusted_proxies`: found an empty list"));
    for wrong in ["10.0.0.1/8", "300.0.0.0/8", "proxy", ""] {
        for list in [format!("'{wrong}'"), format!("['10.0.0.0/8', '{wrong}']")] {
            let problem = problems(&format!("trusted_proxies = {list}"));
            let expected = format!("found {wrong:?}; allowed is a network or an address");
            assert!(
                problem.contains("`ingress.proxy_protocol.trusted_proxies") && problem.contains(&expected),
                "{problem}"
            );
        }
    }
    let toml = format!("{STDOUT}[ingress.proxy_protocol]\ntrusted_proxies = ['10.0.0.0/8', '2001:db8::1']");
    let config = Config::from_toml(&toml).unwrap();
    assert_eq!(config.ingress.proxy_protocol.unwrap().trusted_proxies.0.len(), 2);
}
