//! Where the system's loader knows packed relocations, the program has them: a bit for each place to move instead of 24 bytes, which is
//! 0.8 MB of file and of memory.

use std::env;
use std::process::Command;

/// The first glibc whose loader knows them. An older one says that it misses `GLIBC_ABI_DT_RELR`.
const GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| env::var(name).unwrap_or_default();
    let target = variable("TARGET");
    if target == variable("HOST") && target.ends_with("-linux-gnu") && glibc().is_some_and(|version| version >= GLIBC) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of the C library here, where there is a glibc.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
