//! What an application is told when something fails: a type of its own, so that nothing internal leaks.

use std::borrow::Cow;

use crate::wire::FrameError;

/// No majority among results.
pub(crate) const NO_MAJORITY: &str = "BF001";
/// Footprint too small: the catalog changed since the statement was analysed.
pub(crate) const FOOTPRINT_TOO_SMALL: &str = "BF003";
/// Not supported through the proxy.
pub(crate) const NOT_SUPPORTED: &str = "BF004";
/// The cluster makes no progress.
pub(crate) const NO_PROGRESS: &str = "BF005";

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Severity {
    #[default]
    Error,
    Fatal,
    Warning,
}

impl Severity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
        }
    }
}

/// A function of PostgreSQL that raises an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routine {
    /// A prepared statement does not fit the catalog any more.
    RevalidateCachedQuery,
}

impl Routine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Routine::RevalidateCachedQuery => "RevalidateCachedQuery",
        }
    }
}

/// The fields of an ErrorResponse or NoticeResponse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApplicationError {
    pub(crate) severity: Severity,
    pub(crate) sqlstate: Cow<'static, str>,
    pub(crate) message: Cow<'static, str>,
    pub(crate) detail: Option<Cow<'static, str>>,
    pub(crate) hint: Option<Cow<'static, str>>,
    /// Characters from the start of the text, from 1.
    pub(crate) position: Option<usize>,
    /// The function of PostgreSQL that raises this error: some drivers know an error by it.
    pub(crate) routine: Option<Routine>,
}

impl ApplicationError {
    pub(crate) fn new(sqlstate: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Error,
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            routine: None,
        }
    }

    pub(crate) fn fatal(sqlstate: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Fatal,
            ..Self::new(sqlstate, message)
        }
    }

    pub(crate) fn warning(sqlstate: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::new(sqlstate, message)
        }
    }

    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into()).filter(|detail| !detail.is_empty());
        self
    }

    #[must_use]
    pub(crate) fn routine(mut self, routine: Routine) -> Self {
        self.routine = Some(routine);
        self
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        self
    }

    /// Statements in a failed transaction.
    pub(crate) fn in_failed_transaction() -> Self {
        Self::new(
            "25P02",
            "current transaction is aborted, commands ignored until end of transaction block",
        )
    }

    /// Cancelled by the application.
    pub(crate) fn cancelled() -> Self {
        Self::new("57014", "canceling statement due to user request")
    }

    /// The proxy ends.
    pub(crate) fn shutting_down() -> Self {
        Self::fatal("57P01", "terminating connection due to administrator command")
    }
}

impl From<&FrameError> for ApplicationError {
    fn from(error: &FrameError) -> Self {
        match error {
            FrameError::Malformed(message) => Self::fatal("08P01", *message),
            FrameError::TooLarge(_) => {
                Self::fatal("54000", error.to_string()).hint("Send large data with COPY FROM STDIN, in pieces.")
            }
            FrameError::Encoding(_) => Self::new("22021", error.to_string()),
            FrameError::Connection(_) | FrameError::Closed => Self::fatal("08006", error.to_string()),
        }
    }
}
