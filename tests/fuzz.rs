//! Every fuzzed property holds for the seeds and for mutations of them. `fuzz/run` searches for longer.

#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::path::{Path, PathBuf};

type Property = fn(&[u8]);

/// Every target, under the name that it has in `fuzz/`.
const TARGETS: [(&str, Property); 8] = [
    ("auth", properties::auth),
    ("config", properties::config),
    ("decode", properties::decode),
    ("decompress", properties::decompress),
    ("form", properties::form),
    ("recovery", properties::recovery),
    ("segment", properties::segment),
    ("template", properties::template),
];

/// What parsers stumble over.
const TOKENS: [&[u8]; 12] =
    [b"\"", b"\\u", b"{", b"}", b"[", b"&", b"=", b"%", b"\n", b"\0", b"\xff\xff\xff\xff", "\u{fffd}".as_bytes()];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The seeds of a target and their names, in order.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(fuzz().join("seeds").join(target)).unwrap().map(|file| file.unwrap().path());
    let mut seeds: Vec<_> = files
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// Shows the bytes that a property does not hold for.
struct Case<'a>(&'a str, &'a str, &'a [u8]);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        let Self(target, from, bytes) = self;
        if std::thread::panicking() {
            println!("failed: {target} with {from}: {}", bytes.escape_ascii());
        }
    }
}

fn run(target: &str, property: Property, from: &str, bytes: &[u8]) {
    let _case = Case(target, from, bytes);
    property(bytes);
}

fn changed(seed: &[u8], other: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..16)).min(bytes.len());
        match random.u8(..6) {
            0 => drop(bytes.splice(at..end, [])),
            1 => drop(bytes.splice(at..at, TOKENS[random.usize(..TOKENS.len())].iter().copied())),
            2 => drop(bytes.splice(at.., other[other.len().min(at)..].iter().copied())),
            3 => bytes.extend_from_within(at..end),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
        }
    }
    bytes
}

#[test]
fn every_property_holds_for_what_was_found_once_and_for_what_is_like_it() {
    let variable = |name, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, cases) = (variable("CDRELAY_FUZZ_SEED", 1), variable("CDRELAY_FUZZ_CASES", 200));
    println!("CDRELAY_FUZZ_SEED={first} CDRELAY_FUZZ_CASES={cases}");
    for (target, property) in TARGETS {
        let seeds = seeds(target);
        for (name, bytes) in &seeds {
            run(target, property, name, bytes);
        }
        for seed in first..first + cases {
            let mut random = fastrand::Rng::with_seed(seed);
            let (name, bytes) = &seeds[random.usize(..seeds.len())];
            let bytes = changed(bytes, &seeds[random.usize(..seeds.len())].1, &mut random);
            run(target, property, &format!("{name} changed by CDRELAY_FUZZ_SEED={seed}"), &bytes);
        }
    }
}

#[test]
fn every_property_is_fuzzed() {
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let fuzzed: Vec<_> = manifest.split("[[bin]]").skip(1).map(|bin| bin.split('"').nth(1).unwrap()).collect();
    assert_eq!(fuzzed, TARGETS.map(|(name, _)| name));
    for (name, _) in TARGETS {
        let target = std::fs::read_to_string(fuzz().join(format!("targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("cdrelay_fuzz::{name}(data)")), "{target}");
        assert!(!seeds(name).is_empty());
    }
}
