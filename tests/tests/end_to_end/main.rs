//! End to end on real processes: `cloudbft up`, real PostgreSQL servers, real applications.

mod advisory;
mod applications;
mod byzantine_primary;
mod crashes;
mod cut_links;
mod dump;
mod effects;
mod held_cursors;
mod large_objects;
mod lying_voter;
mod notifications;
mod object_numbers;
mod pbft;
mod pgbench;
mod psql;
mod rejoin;
mod repair;
mod scale;
mod scrub;
mod temporary;
mod tpcc;
mod waiting;
