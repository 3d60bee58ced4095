use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// A server in a directory that its user may enter.
fn server(directory: &Path) -> DatabaseServer {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).unwrap();
    let directory = directory.canonicalize().unwrap();
    let options = ServerOptions {
        directory: directory.join("database"),
        socket_directory: directory.join("socket"),
        port: 5432,
        connections_max: 20,
        shared_buffers_mib: 16,
        logical: true,
        database: String::from("app"),
        roles: vec![String::from("app")],
    };
    DatabaseServer::new(Binaries::find().unwrap(), options)
}

#[tokio::test]
async fn a_server_keeps_its_data_over_a_kill_and_a_stop() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    server.start().await.unwrap();
    let client = server.connect("app").await.unwrap();
    client
        .batch_execute("create table kept (x int); insert into kept values (7)")
        .await
        .unwrap();
    client.batch_execute("checkpoint").await.unwrap();
    kill(Pid::from_raw(server.pid().unwrap().cast_signed()), Signal::SIGKILL).unwrap();

    server.start().await.unwrap();
    let client = server.connect("app").await.unwrap();
    assert_eq!(
        client
            .query_one("select x from kept", &[])
            .await
            .unwrap()
            .get::<_, i32>(0),
        7
    );
    server.start().await.unwrap();
    server.stop().await.unwrap();
    assert_eq!(server.pid(), None);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_superuser_owns_a_database_and_the_first_role_what_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    server.start().await.unwrap();
    let client = server.connect("app").await.unwrap();
    let ask = async |text: &str| client.query_one(text, &[]).await.unwrap().get::<_, String>(0);
    let owner = "select pg_get_userbyid(datdba)::text from pg_database where datname = 'app'";
    assert_eq!(ask(owner).await, SUPERUSER);
    let rights = "select string_agg(p, ',') from unnest(array['create','connect','temporary']) p \
                  where has_database_privilege('app', 'app', p)";
    assert_eq!(ask(rights).await, "create,connect");
    client
        .batch_execute("set session authorization app; create table public.t (x int); create schema other")
        .await
        .unwrap();
    server.stop().await.unwrap();
}
