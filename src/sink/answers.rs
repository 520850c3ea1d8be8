//! Answers that a thread has for those who wait on the runtime.

use tokio::sync::{mpsc, oneshot};

/// How many are given before others get their turn.
const AT_ONCE: usize = 512;

/// Leaves each answer to a task: the thread would wake those who wait one by one, and the first would take its processor away.
#[derive(Debug)]
pub struct Answers<T>(mpsc::UnboundedSender<(oneshot::Sender<T>, T)>);

impl<T> Clone for Answers<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + 'static> Answers<T> {
    /// Starts the task, which ends when nobody can give it an answer any more. Needs a tokio runtime.
    pub fn start() -> Self {
        let (sender, mut answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut taken: Vec<(oneshot::Sender<T>, T)> = Vec::new();
            while answers.recv_many(&mut taken, AT_ONCE).await > 0 {
                for (waiting, answer) in taken.drain(..) {
                    // Whoever waited may be gone.
                    let _ = waiting.send(answer);
                }
            }
        });
        Self(sender)
    }

    /// Answers who waits at the other end of `waiting`; without a runtime they learn that nobody will.
    pub fn give(&self, waiting: oneshot::Sender<T>, answer: T) {
        let _ = self.0.send((waiting, answer));
    }
}
