//! All that databases hold, read in snapshots of one and the same state.

use std::time::Duration;

use cluster::file::ClusterFile;
use ordering::identifiers::MachineId;

use crate::Failure;
use crate::databases::contents::{self, Contents, Numbers, Sequences};
use crate::databases::members::{Member, are_together, connect, on_all, open_together};

/// A database node, and what it holds.
pub(crate) struct Node {
    pub(crate) member: Member,
    pub(crate) contents: Contents,
    pub(super) numbers: Numbers,
}

impl Node {
    pub(crate) fn id(&self) -> MachineId {
        self.member.id
    }

    pub(super) fn name(&self) -> &str {
        &self.member.name
    }
}

/// What was read.
pub(crate) struct Read {
    pub(crate) nodes: Vec<Node>,
    /// At one state.
    pub(crate) together: bool,
}

/// Reads databases in snapshots that hold the same transactions; after this long in any.
pub(crate) async fn read_together(
    file: &ClusterFile,
    machines: &[MachineId],
    at_rest: bool,
    patience: Duration,
) -> Result<Read, Failure> {
    let members = connect(file, machines).await?;
    let opened = open_together(&members, "", patience).await?;
    let together = are_together(&opened);
    opened.into_iter().collect::<Result<Vec<_>, _>>()?;
    let sequences = match at_rest {
        true => Sequences::Themselves,
        false => Sequences::Committed,
    };
    let read = on_all(
        &members,
        |client| async move { contents::read(&client, sequences).await },
    )
    .await?;
    let mut nodes = Vec::new();
    for (member, read) in members.into_iter().zip(read) {
        let (contents, numbers) = read?;
        nodes.push(Node {
            member,
            contents,
            numbers,
        });
    }
    Ok(Read { nodes, together })
}
