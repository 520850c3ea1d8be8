//! Has the program linked so that its relocations take little memory, where the C library understands that.

use std::env::var;
use std::process::Command;

/// Linux' dynamic loader has `DT_RELR` from this version of glibc on (<https://sourceware.org/glibc/wiki/Release/2.36>).
const GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The table of relocations is read whole when the program starts, and has 600 KB otherwise. What is built where glibc is older, or
    // for another machine, has to start there.
    let native = var("TARGET").ok() == var("HOST").ok() && var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu");
    if native && glibc().is_some_and(|version| version >= GLIBC) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc, as getconf tells it: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, rest) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = rest.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
