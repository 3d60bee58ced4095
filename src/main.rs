//! The `cloudbft` command.
fn main() {}
