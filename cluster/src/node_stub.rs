//! stub
use crate::file::ClusterFile;
use ordering::identifiers::MachineId;
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeStatus {
    pub machine: String, pub pid: u32, pub state: String, pub view: u64, pub prepared: u64, pub decided: u64, pub stable: u64,
    pub groups: Vec<(u16, u64)>, pub executed: Option<u64>, pub flushed: Option<u64>, pub digest: Option<String>, pub log_bytes: u64,
}
pub async fn run(_f: &ClusterFile, _me: MachineId, shutdown: impl Future<Output = ()>) -> Result<(), std::io::Error> { shutdown.await; Ok(()) }
pub fn backends_max(_f: &ClusterFile) -> usize { 90 }
