//! Postgres's lexical rules.
