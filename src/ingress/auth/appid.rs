//! The applications whose events are taken.

use crate::event::Event;

/// Of several events, all have to be of one of these.
pub fn check(events: &[Event], allowed: &[String]) -> Result<(), &'static str> {
    let known = |event: &Event| event.text("appid").is_some_and(|appid| allowed.contains(&appid));
    if events.iter().all(known) { Ok(()) } else { Err("an event is of another appid, or of none") }
}
