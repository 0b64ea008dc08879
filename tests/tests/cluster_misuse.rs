//! Wrong use: each mistake is refused within seconds, by a message that names what is wrong, and harms nothing.

#![allow(clippy::disallowed_methods, reason = "a shell: it owns sockets and files")]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_tests::cluster::{Cluster, Server, detach, is_mounted, with_cluster};
use dfs_tests::daemon::{self, Daemon};
use dfs_tests::ports::Ports;
use dfs_tests::{http, program, wait};

const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;
const REFUSED: i32 = 4;
const DEADLINE: Duration = Duration::from_secs(40);

/// Runs `dfs ARGUMENTS`, which must end with `code` and say each of `words`.
fn refused(arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let mut command = daemon::command()?;
    command.args(arguments);
    let ended = program::run(&mut command, DEADLINE)?;
    let text = ended.text();
    ensure!(
        ended.status.code() == Some(code),
        "{arguments:?}: {}, exit code {code} was expected; it said\n{text}",
        ended.status
    );
    for word in words {
        ensure!(text.contains(word), "{arguments:?}: {word:?} is not in\n{text}");
    }
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

#[test]
fn a_second_up_on_one_data_directory_is_refused_and_the_first_goes_on() -> Result<()> {
    let (root, ports, others) = (tempfile::tempdir()?, Ports::take()?, Ports::take()?);
    let (data, first, second) = (root.path().join("data"), root.path().join("first"), root.path().join("second"));
    let base = ports.at(0).to_string();
    let arguments = ["up", "--data", text(&data), "--mount", text(&first), "--base-port", &base].map(str::to_owned);
    let mut up = Daemon::new("up", root.path(), arguments.into(), &[]);
    up.start()?;
    let outcome = (|| {
        wait::until("up is ready", Duration::from_secs(60), || {
            up.alive()?;
            ensure!(up.log().contains("\nready: "), "it has not said so");
            Ok(())
        })?;
        std::fs::write(first.join("file"), "content")?;
        let elsewhere = others.at(0).to_string();
        refused(
            &["up", "--data", text(&data), "--mount", text(&second), "--base-port", &elsewhere],
            REFUSED,
            &[text(&data)],
        )?;
        let fresh = root.path().join("fresh");
        refused(&["up", "--data", text(&fresh), "--mount", text(&second), "--base-port", &base], REFUSED, &[&base])?;
        refused(
            &["up", "--data", text(&fresh), "--mount", text(&first), "--base-port", &elsewhere],
            REFUSED,
            &[text(&first)],
        )?;
        ensure!(std::fs::read(first.join("file"))? == b"content", "the first cluster was harmed");
        up.stop(Duration::from_secs(60))?;
        ensure!(!is_mounted(&first), "it is still mounted");
        // Taken up again, it has the same files.
        up.start()?;
        wait::until("up is ready again", Duration::from_secs(60), || {
            up.alive()?;
            ensure!(up.log().matches("\nready: ").count() == 2 && is_mounted(&first), "it has not said so");
            Ok(())
        })?;
        ensure!(std::fs::read(first.join("file"))? == b"content", "the file is not there after the restart");
        up.stop(Duration::from_secs(60))
    })();
    if outcome.is_err() {
        eprintln!("{}", up.log_tail(60));
        if up.is_started() {
            let _ = up.stop(Duration::from_secs(60));
        }
        if is_mounted(&first) {
            let _ = detach(&first);
        }
    }
    outcome
}

#[test]
fn a_busy_port_is_named() -> Result<()> {
    let (root, ports) = (tempfile::tempdir()?, Ports::take()?);
    let data = root.path().join("data");
    std::fs::create_dir(&data)?;
    for offset in 0..3 {
        let _busy = TcpListener::bind(("127.0.0.1", ports.at(offset)))?;
        let listen = format!("127.0.0.1:{}", ports.at(0));
        refused(&["master", "--data", text(&data), "--listen", &listen], REFUSED, &[&ports.at(offset).to_string()])?;
    }
    Ok(())
}

#[test]
fn a_data_directory_in_use_is_named() {
    with_cluster(|cluster| {
        let listen = format!("127.0.0.1:{}", cluster.spare_port(0));
        let data = cluster.root().join("master");
        refused(&["master", "--data", text(&data), "--listen", &listen], REFUSED, &[text(&data)])?;
        let data = cluster.root().join("chunkd0");
        refused(
            &["chunkd", "--data", text(&data), "--master", &cluster.address(), "--listen", &listen],
            REFUSED,
            &[text(&data)],
        )
    });
}

#[test]
fn a_mount_point_that_is_not_an_empty_directory_is_refused() {
    with_cluster(|cluster| {
        let point = cluster.root().join("point");
        refused(&["mount", &cluster.address(), text(&point)], REFUSED, &[text(&point)])?;
        std::fs::create_dir(&point)?;
        std::fs::write(point.join("precious"), "content")?;
        refused(&["mount", &cluster.address(), text(&point)], REFUSED, &[text(&point), "empty"])?;
        ensure!(std::fs::read(point.join("precious"))? == b"content", "it was harmed");
        let file = point.join("precious");
        refused(&["mount", &cluster.address(), text(&file)], REFUSED, &[text(&file), "directory"])
    });
}

#[test]
fn an_unknown_mount_option_is_named_and_an_unreachable_master_too() -> Result<()> {
    let (root, ports) = (tempfile::tempdir()?, Ports::take()?);
    let point = root.path().join("point");
    std::fs::create_dir(&point)?;
    let address = format!("127.0.0.1:{}", ports.at(0));
    refused(&["mount", &address, text(&point), "-o", "ro,nosuchthing=1"], USAGE, &["nosuchthing"])?;
    refused(&["mount", &address, text(&point), "-o", "soft=1"], UNREACHABLE, &[&address])?;
    refused(&["mount", &address, text(&point), "-f", "-o", "soft=1"], UNREACHABLE, &[&address])?;
    ensure!(!is_mounted(&point), "it is mounted all the same");
    refused(&["status", "--master", &address], UNREACHABLE, &[&address])?;
    refused(&["mount", "not a source", text(&point)], USAGE, &["not a source"])?;
    refused(&["frobnicate"], USAGE, &["frobnicate"])
}

#[test]
fn disks_of_another_cluster_are_refused_with_both_ids() -> Result<()> {
    let (mut ours, theirs) = (Cluster::start(3, &[])?, Cluster::start(1, &[])?);
    let id = |cluster: &Cluster| -> Result<String> {
        Ok(cluster.status()?["cluster_id"].as_str().context("status --json: no cluster_id")?.to_owned())
    };
    let (our_id, their_id) = (id(&ours)?, id(&theirs)?);
    ensure!(our_id != their_id, "two clusters have the id {our_id}");
    ours.daemon(Server::Chunk(0)).stop(DEADLINE)?;

    let data = ours.root().join("chunkd0");
    let port = ours.spare_port(0);
    let listen = format!("127.0.0.1:{port}");
    let arguments =
        ["chunkd", "--data", text(&data), "--master", &theirs.address(), "--listen", &listen].map(str::to_owned);
    let mut stray = Daemon::new("stray", ours.root(), arguments.into(), &[]);
    stray.start()?;
    wait::until("it was refused with both ids", DEADLINE, || {
        let log = stray.log();
        ensure!(
            log.contains(&our_id) && log.contains(&their_id),
            "{our_id} and {their_id} are not both in its log:\n{log}"
        );
        Ok(())
    })?;
    ensure!(http::healthy(port).is_err(), "it says that it is well");
    ensure!(theirs.status()?["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "the other cluster took it");
    if stray.alive().is_ok() {
        let _ = stray.kill9();
    }
    // Where it belongs it is taken.
    ours.daemon(Server::Chunk(0)).start()?;
    ours.wait_ready()?;
    ours.stop()
}

#[test]
fn settings_that_make_no_sense_are_named() -> Result<()> {
    let root = tempfile::tempdir()?;
    let file = root.path().join("dfs.toml");
    std::fs::write(&file, "[master]\nlisten_on = 1\n")?;
    refused(&["config", "--config", text(&file)], USAGE, &["listen_on"])?;
    refused(&["master", "--listen", "127.0.0.1:1"], USAGE, &["--data"])?;
    refused(&["chunkd", "--data", text(root.path()), "--master", "127.0.0.1:x"], USAGE, &["127.0.0.1:x"])
}

#[test]
fn the_background_mount_returns_once_it_is_mounted_and_umount_ends_it() {
    with_cluster(|cluster| {
        let point = cluster.root().join("point");
        std::fs::create_dir(&point)?;
        let mut command = daemon::command()?;
        command.args([
            "mount",
            &cluster.address(),
            text(&point),
            "-o",
            &format!("log={}/mount.log", text(cluster.root())),
        ]);
        program::command_ok(&mut command, DEADLINE)?;
        ensure!(is_mounted(&point), "dfs mount returned, and nothing is mounted");
        let written = std::fs::write(point.join("file"), "content");
        program::ok(Path::new("/"), "umount", [text(&point)], DEADLINE)?;
        written?;
        wait::until("its session is closed", DEADLINE, || {
            let status = cluster.status()?;
            ensure!(status["sessions"].as_array().is_some_and(Vec::is_empty), "sessions: {}", status["sessions"]);
            Ok(())
        })
    });
}
