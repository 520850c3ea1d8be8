//! Which events a command is about.

use super::CommandError;
use crate::dead_letter::DeadLetter;
use crate::event::{Arrival, Event, Events, MAX_DEPTH};
use clap::Args;

/// Filters that several commands share; an event has to pass all that are given.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only what arrived this lately (`2h`, `45m`) or since this moment (RFC 3339).
    #[arg(long, value_name = "PERIOD|TIME")]
    since: Option<String>,
    /// Only what arrived before this lately, or before this moment.
    #[arg(long, value_name = "PERIOD|TIME")]
    until: Option<String>,
    /// Only this team.
    #[arg(long)]
    team: Option<String>,
    /// Only this conversation.
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
}

/// Filters with their times resolved.
pub struct Filter<'a> {
    since: Option<Arrival>,
    until: Option<Arrival>,
    selection: &'a Selection,
}

impl Selection {
    /// Reads the times.
    pub fn compile(&self) -> Result<Filter<'_>, CommandError> {
        let moment = |option: &str, text: &Option<String>| text.as_deref().map(|text| moment(option, text)).transpose();
        Ok(Filter { since: moment("--since", &self.since)?, until: moment("--until", &self.until)?, selection: self })
    }
}

/// The moment that an option names: a time, or a period that ends now.
pub fn moment(option: &str, text: &str) -> Result<Arrival, CommandError> {
    if let Ok(moment) = text.parse::<Arrival>() {
        return Ok(moment);
    }
    let days_are_24_hours = jiff::SpanRelativeTo::days_are_24_hours();
    match text.parse::<jiff::Span>().and_then(|period| period.to_duration(days_are_24_hours)) {
        Ok(period) => Ok(Arrival(Arrival::now().0.saturating_sub(period.as_millis().max(0) as u64))),
        Err(_) => Err(CommandError::Usage(format!(
            "{option} {text:?}: expected a period such as 2h, or a time such as 2026-01-31T03:00:00Z"
        ))),
    }
}

impl Filter<'_> {
    /// Whether the event passes.
    pub fn takes_event(&self, event: &Event) -> bool {
        let arrival = event.arrival();
        self.since.is_none_or(|since| arrival >= since)
            && self.until.is_none_or(|until| arrival < until)
            && self.selection.conversation.as_deref().is_none_or(|wanted| wanted == event.conversation())
            && self.selection.team.as_deref().is_none_or(|wanted| event.text("team").unwrap_or_default() == wanted)
    }

    /// Whether a body passes that was complete at `arrival`: if any event in it is of the wanted team and conversation.
    pub fn takes_body(&self, arrival: Arrival, events: impl FnOnce() -> Events) -> bool {
        self.since.is_none_or(|since| arrival >= since)
            && self.until.is_none_or(|until| arrival < until)
            && ((self.selection.team.is_none() && self.selection.conversation.is_none())
                || events().iter().any(|event| self.takes_event(event)))
    }

    /// Whether the dead letter's event passes.
    pub fn takes_letter(&self, letter: &DeadLetter) -> bool {
        let arrival = letter.arrival.parse().unwrap_or(Arrival(0));
        Event::parse(&letter.payload, MAX_DEPTH, arrival).is_ok_and(|event| self.takes_event(&event))
    }
}
