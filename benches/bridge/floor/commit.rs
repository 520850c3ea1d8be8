//! Group commits: all bytes that wait in one write and one `fdatasync`, into a file that was filled before. No frames, no checksums, and
//! nobody ever reads them.

use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::mem::{swap, take};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How large the file is. What would go beyond begins at its beginning again.
const SIZE: u64 = 16 << 20;

struct Log {
    file: File,
    position: u64,
}

impl Log {
    fn create(path: &Path) -> Self {
        let file = File::create(path).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, SIZE).unwrap();
        // In space that is only reserved a sync costs more.
        file.write_all_at(&vec![0; SIZE as usize], 0).unwrap();
        file.sync_all().unwrap();
        Self { file, position: 0 }
    }

    fn commit(&mut self, bytes: &[u8]) {
        if self.position + bytes.len() as u64 > SIZE {
            self.position = 0;
        }
        self.file.write_all_at(bytes, self.position).unwrap();
        self.file.sync_data().unwrap();
        self.position += bytes.len() as u64;
    }
}

/// A loop of commits of `waiting` records of `bytes` each. Returns records per second, and how long each commit took in
/// microseconds, ascending.
pub fn raw_commits(path: &Path, waiting: usize, bytes: usize, measure: Duration) -> (f64, Vec<u32>) {
    let mut log = Log::create(path);
    let batch = vec![b'x'; waiting * bytes];
    let begun = Instant::now();
    let (mut records, mut latencies) = (0, Vec::new());
    while begun.elapsed() < measure {
        let commit = Instant::now();
        log.commit(&batch);
        records += waiting;
        latencies.push(commit.elapsed().as_micros() as u32);
    }
    latencies.sort_unstable();
    (records as f64 / begun.elapsed().as_secs_f64(), latencies)
}

/// A thread that commits what requests bring.
#[derive(Clone)]
pub struct GroupCommit(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    some_wait: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    requests: Vec<oneshot::Sender<()>>,
}

impl GroupCommit {
    /// Starts the thread, and the task that tells requests: that they are told together costs less than each by the thread.
    pub fn start(path: &Path) -> Self {
        let shared = Arc::<Shared>::default();
        let (commits, mut committed) = mpsc::unbounded_channel::<Vec<oneshot::Sender<()>>>();
        tokio::spawn(async move {
            while let Some(requests) = committed.recv().await {
                for request in requests {
                    let _ = request.send(());
                }
            }
        });
        let mut log = Log::create(path);
        let this = Self(shared.clone());
        std::thread::spawn(move || {
            let mut taken = Waiting::default();
            loop {
                shared.take(&mut taken);
                log.commit(&taken.bytes);
                taken.bytes.clear();
                commits.send(take(&mut taken.requests)).unwrap();
            }
        });
        this
    }

    /// Hands the bytes over. What is returned resolves when they are on disk.
    pub fn append(&self, bytes: &[u8]) -> oneshot::Receiver<()> {
        let (done, committed) = oneshot::channel();
        let mut waiting = self.0.waiting.lock().unwrap();
        waiting.bytes.extend_from_slice(bytes);
        waiting.requests.push(done);
        if waiting.requests.len() == 1 {
            self.0.some_wait.notify_one();
        }
        committed
    }
}

impl Shared {
    /// All that wait, once there are any, in place of what is given, whose memory is used again.
    fn take(&self, taken: &mut Waiting) {
        let waiting = self.waiting.lock().unwrap();
        let mut waiting = self.some_wait.wait_while(waiting, |waiting| waiting.requests.is_empty()).unwrap();
        swap(&mut *waiting, taken);
    }
}
