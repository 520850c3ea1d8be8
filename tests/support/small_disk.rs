//! A file system of a few MiB that a test can fill to the last byte: a tmpfs in a mount namespace that nobody else sees.
//!
//! ```ignore
//! let disk = SmallDisk::mount(8 << 20).await.expect("a system that lets users mount");
//! let config = format!("[spool]\npath = {:?}", disk.path());
//! let bridge = Bridge::start_inside(&disk, &config).await;
//! disk.fill();
//! ```

use std::fs::{File, read_to_string, remove_file};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::process::Process;
use super::{PATIENCE, until};

/// With a user namespace around it, anybody may mount where the system allows such; without one, only root may.
const WAYS: [&[&str]; 2] = [&["--user", "--map-root-user", "--mount"], &["--mount"]];

/// Gone when dropped.
pub struct SmallDisk {
    /// The namespace lives as long as this does nothing.
    holder: Process,
    /// How it was made, and how it is entered.
    way: &'static [&'static str],
    directory: TempDir,
}

impl SmallDisk {
    /// Mounts one; `Err` says why that is not possible here.
    pub async fn mount(bytes: usize) -> Result<Self, String> {
        let mut refusals = Vec::new();
        for way in WAYS {
            match Self::try_mount(way, bytes).await {
                Ok(disk) => return Ok(disk),
                Err(refusal) => refusals.push(format!("unshare {}: {}", way.join(" "), refusal.trim())),
            }
        }
        Err(refusals.join("; "))
    }

    async fn try_mount(way: &'static [&'static str], bytes: usize) -> Result<Self, String> {
        let directory = TempDir::new().unwrap();
        let point = directory.path().join("disk");
        std::fs::create_dir(&point).unwrap();
        let (stdout, stderr) = (directory.path().join("stdout"), directory.path().join("stderr"));
        let mount =
            format!("mount -t tmpfs -o size={bytes},mode=700 small-disk \"$0\" && echo mounted && exec sleep 3600");
        let mut unshare = Command::new("unshare");
        unshare.args(way).args(["sh", "-c", &mount]).arg(&point);
        let mut holder = Process::try_spawn(&mut unshare, &stdout, &stderr).map_err(|error| error.to_string())?;
        let mounted = until(PATIENCE, "a file system is mounted or refused", async || {
            let ended = holder.exited().is_some();
            let mounted = read_to_string(&stdout).unwrap().contains("mounted");
            (ended || mounted).then_some(mounted)
        });
        match mounted.await {
            true => Ok(Self { holder, way, directory }),
            false => Err(read_to_string(&stderr).unwrap()),
        }
    }

    /// How it could be mounted.
    pub fn way(&self) -> String {
        format!("unshare {}", self.way.join(" "))
    }

    /// Where those inside find it.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Where this process finds it.
    fn seen_from_outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(self.path().strip_prefix("/").unwrap())
    }

    /// The command line in front of a program that is to run inside.
    pub fn enter(&self) -> Vec<String> {
        let mut command = vec!["nsenter".to_owned(), "--target".to_owned(), self.holder.pid().to_string()];
        command.push("--mount".to_owned());
        if self.way.contains(&"--user") {
            command.extend(["--user".to_owned(), "--preserve-credentials".to_owned()]);
        }
        command.push("--".to_owned());
        command
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = File::options().append(true).create(true).open(self.ballast()).unwrap();
        // As long as a page fits. Writes are what the bridge does: this asks for room as it will.
        while ballast.write_all(&[b'x'; 4096]).is_ok() {}
    }

    /// Gives back what [`Self::fill`] took.
    pub fn free(&self) {
        remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.seen_from_outside().join("ballast")
    }
}
