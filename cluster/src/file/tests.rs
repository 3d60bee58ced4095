use super::*;

fn generated(directory: &Path) -> ClusterFile {
    generate(directory, &Tunables::default(), |_| Ok([7; 32])).unwrap()
}

fn text() -> String {
    let directory = tempfile::tempdir().unwrap();
    generated(directory.path());
    std::fs::read_to_string(directory.path().join("cluster.toml")).unwrap()
}

fn refused(text: &str) -> FileError {
    ClusterFile::parse(Path::new("cluster.toml"), text).unwrap_err()
}

fn line_with(text: &str, part: &str) -> usize {
    text.lines().position(|line| line.contains(part)).unwrap() + 1
}

#[test]
fn what_is_generated_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let generated = generated(directory.path());
    let read = ClusterFile::read(&directory.path().join("cluster.toml")).unwrap();
    assert_eq!(read.machines, generated.machines);
    assert_eq!((read.machines.len(), read.clients.len()), (4, 1));
    assert_eq!(read.hash(), generated.hash());
    assert_eq!(read.rules(), &PartitionRules::tpcc());
    assert!(read.machines[0].database.is_none() && read.machines[1].database.is_some());
    let own = crate::identity::Identity::read(&read.layout().machine_identity(MachineId(2))).unwrap();
    assert_eq!(own.public().to_bytes(), read.machines[2].identity);
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let text = text().replace("heartbeat_ms", "heart_beat_ms");
    let error = refused(&text);
    assert_eq!(error.line, line_with(&text, "heart_beat_ms"), "{error}");
    assert!(
        error.message.contains("heart_beat_ms") && error.remedy.contains("spelling"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_of_a_machine_is_refused() {
    let text = text()
        .replacen("metrics = ", "metric = ", 1)
        .replacen("proxy_metric = ", "proxy_metrics = ", 1);
    let text = text.replacen("\nmetrics = ", "\nmetric = ", 1);
    assert!(refused(&text).message.contains("metric"));
}

#[test]
fn a_bad_key_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = generated(directory.path());
    let key = crate::hex::encode(&file.machines[2].identity);
    let text = std::fs::read_to_string(directory.path().join("cluster.toml"))
        .unwrap()
        .replace(&key, "beef");
    let error = refused(&text);
    assert_eq!(error.line, line_with(&text, "\"beef\""), "{error}");
    assert!(error.remedy.contains("64 hexadecimal"));
}

#[test]
fn an_identity_listed_twice_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = generated(directory.path());
    let (one, two) = (
        crate::hex::encode(&file.machines[1].identity),
        crate::hex::encode(&file.machines[2].identity),
    );
    let text = std::fs::read_to_string(directory.path().join("cluster.toml"))
        .unwrap()
        .replace(&two, &one);
    assert!(refused(&text).message.contains("twice"));
}

#[test]
fn the_number_of_machines_must_fit_the_faults() {
    let text = text().replace("faults = 1", "faults = 2");
    let error = refused(&text);
    assert!(error.message.contains("minbft needs 6"), "{error}");
    assert!(error.line > 0);
}

#[test]
fn pbft_has_3f_plus_1_machines_and_2f_plus_1_databases() {
    for (faults, databases) in [(1, 1..=3), (2, 1..=5)] {
        let directory = tempfile::tempdir().unwrap();
        let mut tunables = Tunables::default();
        (tunables.faults, tunables.agreement) = (faults, Agreement::Pbft);
        let file = generate(directory.path(), &tunables, |_| Ok([7; 32])).unwrap();
        assert_eq!(file.tunables.agreement, Agreement::Pbft, "it reads back");
        assert_eq!(file.machines.len(), 3 * faults + 1);
        for machine in &file.machines {
            assert_eq!(machine.database.is_some(), databases.contains(&machine.id.0));
        }
        assert_eq!(file.tunables.agreement.replicas(faults), 0..(3 * faults + 1) as u8);
    }
    let text = text().replace("agreement = \"minbft\"", "agreement = \"paxos\"");
    assert!(refused(&text).message.contains("paxos"));
}

#[test]
fn trust_is_for_loopback_only() {
    let text = text().replace("127.0.0.1:6432", "0.0.0.0:6432");
    let error = refused(&text);
    assert_eq!(error.line, line_with(&text, "0.0.0.0"), "{error}");
    assert!(error.remedy.contains("scram"));
}

#[test]
fn a_client_role_must_be_listed() {
    let text = text().replace("roles = [\"app\"]", "roles = [\"root\"]");
    let error = refused(&text);
    assert_eq!(error.line, line_with(&text, "\"root\""), "{error}");
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = refused("faults = 1\ngroups = = 2\n");
    assert_eq!(error.line, 2, "{error}");
}

#[test]
fn tunables_alone_are_enough_to_generate() {
    let path = Path::new("tunables.toml");
    let tunables = raw::parse_tunables(path, "faults = 2\n[limits]\nnode_threads = 2\n").unwrap();
    assert_eq!(
        (tunables.faults, tunables.groups, tunables.limits.node_threads),
        (2, 1, 2)
    );
    assert!(
        raw::parse_tunables(path, &text()).is_err(),
        "a file with machines is a cluster file"
    );
}

#[test]
fn a_log_must_have_room() {
    let with = |bytes: u64| {
        let text = text();
        let line = text.lines().find(|line| line.starts_with("log_bytes_max")).unwrap();
        text.replace(line, &format!("log_bytes_max = {bytes}"))
    };
    let error = refused(&with((1 << 20) - 1));
    assert_eq!(
        error.line,
        line_with(&with((1 << 20) - 1), "log_bytes_max ="),
        "{error}"
    );
    assert!(error.message.contains("1 MiB"), "{error}");
    ClusterFile::parse(Path::new("cluster.toml"), &with(1 << 20)).unwrap();
}

#[test]
fn a_client_may_be_silent_for_two_seconds_at_least() {
    let with = |value: &str| text().replace("client_silence_ms = 5000", &format!("client_silence_ms = {value}"));
    let error = refused(&with("1999"));
    assert_eq!(error.line, line_with(&with("1999"), "client_silence_ms ="), "{error}");
    let file = ClusterFile::parse(Path::new("cluster.toml"), &with("2000")).unwrap();
    assert_eq!(file.tunables.timeouts.client_silence_ms, 2000);
    let older = text().replace("client_silence_ms = 5000\n", "");
    let file = ClusterFile::parse(Path::new("cluster.toml"), &older).unwrap();
    assert_eq!(
        file.tunables.timeouts.client_silence_ms, 5000,
        "a file of an earlier build"
    );
}

#[test]
fn only_its_owner_may_read_a_cluster_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = generated(directory.path()).path;
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    ClusterFile::restrict(&path).unwrap();
    assert_eq!(mode(), 0o600);
}

#[test]
fn a_file_of_an_earlier_build_has_no_administrator_and_no_spare_groups() {
    let file = ClusterFile::parse(Path::new("cluster.toml"), &text()).unwrap();
    assert_eq!((file.tunables.groups, file.tunables.groups_max), (1, 8));
    assert!(file.administrator.is_some());
    let older = text()
        .replace("groups_max = 8\n", "")
        .replace("groups = 1\n", "groups = 2\n");
    let older = older.split("[administrator]").next().unwrap();
    let file = ClusterFile::parse(Path::new("cluster.toml"), older).unwrap();
    assert_eq!((file.tunables.groups, file.tunables.groups_max), (2, 2));
    assert_eq!(file.administrator, None);
    let few = text().replace("groups = 1\n", "groups = 9\n");
    assert!(refused(&few).message.contains("groups_max must be 9"), "{few}");
}

#[test]
fn the_administrator_has_a_key_of_their_own() {
    let text = text();
    let proxy = ClusterFile::parse(Path::new("cluster.toml"), &text).unwrap().clients[0].identity;
    let (before, _) = text.split_once("[administrator]").unwrap();
    let same = format!(
        "{before}[administrator]\nidentity = \"{}\"\n",
        crate::hex::encode(&proxy)
    );
    assert!(refused(&same).message.contains("listed twice"));
}
