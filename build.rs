//! Links the program so that the table of what the loader has to adjust takes a few kilobytes instead of 1.2 MB, which are read, and
//! so are in memory, from the start (`DT_RELR`). The C library has to know that form, which glibc does from 2.36 on.

use std::env;
use std::process::Command;

const KNOWN_SINCE: [u32; 2] = [2, 36];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    if target.ends_with("-linux-gnu")
        && env::var("HOST").is_ok_and(|host| host == target)
        && glibc() >= Some(KNOWN_SINCE)
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of the C library here, if it is glibc: `getconf` says `glibc 2.36`.
fn glibc() -> Option<[u32; 2]> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some([major.parse().ok()?, minor.parse().ok()?])
}
