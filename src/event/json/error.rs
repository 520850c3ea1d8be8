//! What is wrong with a text.

use std::borrow::Cow;

/// Why, and at which byte, the text is not what was expected. Kept apart, so that a result with what was read is handed on in registers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.problem)]
pub struct Error(Box<Wrong>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Wrong {
    at: usize,
    problem: Cow<'static, str>,
}

impl Error {
    /// This is wrong there.
    pub fn new(at: usize, problem: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Wrong { at, problem: problem.into() }))
    }

    /// Byte index into the text.
    pub fn at(&self) -> usize {
        self.0.at
    }

    /// What is wrong there, in words for whoever wrote the text.
    pub fn problem(&self) -> &str {
        &self.0.problem
    }
}
