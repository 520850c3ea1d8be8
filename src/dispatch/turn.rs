//! How long the loop goes on before other tasks have their turn.

use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::Instant;

/// How many records are seen to at the least: requests are not to wait for a sink that has much to do.
pub(super) const RECORDS: usize = 32;
/// How long it takes at the most.
const LONGEST: Duration = Duration::from_millis(20);

/// A turn of the loop. It may take as long as the others have taken before it: where thousands of connections are busy it comes seldom,
/// and a sink that saw to a few records each time would fall behind for good.
pub struct Turn {
    seen: usize,
    until: Instant,
}

impl Turn {
    /// The first turn.
    pub fn begin() -> Self {
        Self { seen: 0, until: Instant::now() }
    }

    /// So many records are seen to.
    pub fn see(&mut self, records: usize) {
        self.seen += records;
    }

    /// Whether it is about to end.
    pub fn is_used_up(&self) -> bool {
        self.seen > RECORDS
    }

    /// Ends if it has taken long enough; the next one then begins when the other tasks have had theirs.
    pub async fn share(&mut self) {
        if !self.is_used_up() {
            return;
        }
        let end = Instant::now();
        if end < self.until {
            self.seen = 0;
            return;
        }
        yield_now().await;
        let begin = Instant::now();
        *self = Self { seen: 0, until: begin + (begin - end).min(LONGEST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    /// How much later it is once the turn has been shared with somebody who takes so long.
    async fn shared(turn: &mut Turn, takes: u64) -> Duration {
        let begin = Instant::now();
        let other = tokio::spawn(advance(Duration::from_millis(takes)));
        turn.share().await;
        let later = begin.elapsed();
        other.await.unwrap();
        later
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_takes_as_long_as_the_others_took_and_not_for_ever() {
        for (takes, follows) in [(7, 7), (0, 0), (1000, LONGEST.as_millis() as u64)] {
            let mut turn = Turn::begin();
            turn.see(RECORDS);
            assert_eq!(shared(&mut turn, takes).await, Duration::ZERO, "a few records are one turn");
            turn.see(1);
            assert_eq!(shared(&mut turn, takes).await, Duration::from_millis(takes));
            turn.see(10 * RECORDS);
            if follows > 0 {
                assert_eq!(shared(&mut turn, takes).await, Duration::ZERO, "it is not over");
                turn.see(10 * RECORDS);
            }
            assert_eq!(shared(&mut turn, takes).await, Duration::from_millis(takes), "it has taken long enough");
        }
    }
}
