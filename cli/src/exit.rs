//! How `dfs` ends: one exit code for each kind of trouble, so that scripts and the supervisor can tell them apart.

use std::fmt;

/// Why the program ends without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something failed that is none of the below.
    Failed = 1,
    /// The command line, the environment or the settings file is wrong.
    Usage = 2,
    /// A server did not answer.
    Unreachable = 3,
    /// The state of things forbids it (a data directory in use, a busy port, another cluster): to try again
    /// changes nothing until somebody has acted.
    Refused = 4,
}

/// An error with the exit code it leads to, carried inside an `anyhow::Error`.
#[derive(Debug)]
pub struct ExitError {
    /// How the program ends.
    pub exit: Exit,
    text: String,
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ExitError {}

/// Returns an error that ends the program as wrong use.
pub fn usage(text: impl Into<String>) -> anyhow::Error {
    ExitError { exit: Exit::Usage, text: text.into() }.into()
}

/// Returns an error that ends the program as unreachable.
pub fn unreachable(text: impl Into<String>) -> anyhow::Error {
    ExitError { exit: Exit::Unreachable, text: text.into() }.into()
}

/// Returns an error that ends the program as refused.
pub fn refused(text: impl Into<String>) -> anyhow::Error {
    ExitError { exit: Exit::Refused, text: text.into() }.into()
}

/// Returns the exit code that `error` leads to.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<ExitError>()).map_or(Exit::Failed, |found| found.exit) as u8
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn context_does_not_hide_the_code() {
        assert_eq!(code(&refused("in use")), 4);
        assert_eq!(code(&Err::<(), _>(usage("wrong")).context("reading settings").expect_err("an error")), 2);
        assert_eq!(code(&anyhow::anyhow!("other")), 1);
    }
}
