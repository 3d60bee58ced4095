//! What goes around an exchange of a session that has temporary objects, which lie in a schema of the session's (rule
//! TemporaryTables).

use sql::names::AtCommit;

use super::{Backend, Job, Temporary, TemporaryEnd, own};
use crate::postgres::PostgresError;
use crate::postgres::script::{Part, Script};
use crate::postgres::settings::{array, with_temporary};

impl Backend {
    /// Before the exchange: its schema is there and open, and comes first in the search path of the transaction.
    pub(super) fn add_before(&mut self, script: &mut Script, job: &Job) -> Result<(), PostgresError> {
        let Some(temporary) = &job.temporary else { return Ok(()) };
        if job.analysis.temporary.discards {
            script.call(Part::Silent, &self.functions.drop_temporary(&temporary.schema))?;
        }
        if temporary.changes_catalog {
            let makes = job.analysis.temporary.makes();
            let (roles, make) = (temporary.roles(), if makes { "true" } else { "false" });
            let call = self.functions.open_temporary(&temporary.schema, &roles, make);
            script.call(Part::Silent, &call)?;
            if makes {
                script.query(Part::Own, &own::path_first(&temporary.schema))?;
                let settings = self.settings.as_deref().unwrap_or_default();
                self.meaning = own::meaning(&with_temporary(settings, &temporary.schema));
            }
        }
        Ok(())
    }

    /// After it: what it made is noted, nobody can make more, and the schema still comes first.
    pub(super) fn add_after(&mut self, script: &mut Script, job: &Job) -> Result<(), PostgresError> {
        let Some(temporary) = &job.temporary else { return Ok(()) };
        if job.analysis.renames {
            script.query(Part::Own, &own::path_first(&temporary.schema))?;
        }
        if temporary.changes_catalog {
            let made = &job.analysis.temporary.made;
            let names: Vec<_> = made.iter().map(|(name, _)| name.as_str()).collect();
            let ends: Vec<_> = made.iter().map(|(_, at_commit)| letter(*at_commit)).collect();
            let (roles, names, ends) = (temporary.roles(), array(&names), array(&ends));
            let call = self.functions.close_temporary(&temporary.schema, &roles, &names, &ends);
            script.call(Part::Silent, &call)?;
        }
        Ok(())
    }

    /// Before COMMIT: ON COMMIT DELETE ROWS and DROP.
    pub(super) fn add_end(&self, script: &mut Script, end: Option<&TemporaryEnd>) -> Result<(), PostgresError> {
        let Some(end) = end else { return Ok(()) };
        let names = end.written.as_ref().map(|names| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            array(&names)
        });
        // No table can be emptied whose constraints are still to be looked at, or that a cursor or portal still reads. COMMIT would do
        // both too.
        script.query(Part::Silent, own::CONSTRAINTS)?;
        script.query(Part::Own, own::CLOSE_ALL)?;
        let call = self.functions.end_temporary(&end.schema, names.as_deref());
        Ok(script.call(Part::Silent, &call)?)
    }
}

impl Temporary {
    fn roles(&self) -> String {
        let roles: Vec<_> = self.roles.iter().map(String::as_str).collect();
        array(&roles)
    }
}

/// As `cloudbft.temporary` says it.
fn letter(at_commit: AtCommit) -> &'static str {
    match at_commit {
        AtCommit::Keep => "k",
        AtCommit::Empty => "e",
        AtCommit::Drop => "d",
    }
}
