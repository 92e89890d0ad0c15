//! Fleet on machines of their own, to which everything happens that machines suffer, under checked writes and watches
//! through every server: nothing acknowledged is lost, nothing is read that is past, no event is missed or repeated.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Machine, Workload, until};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const WRITERS: usize = 16;
/// From a fault to the next acknowledged write. Writers that asked the server in trouble wait for their own time limit,
/// the others go on at once.
const BUDGET: Duration = Duration::from_secs(5);
/// A small disk: what members keep free, and room for the store's files.
const DISK: u64 = 768 << 20;
/// What a disk that fills up has left: less than members keep free, so that they do not lead.
const SHORT: u64 = 100 << 20;
/// Less than they take entries with, and more than they write then.
const FULL: u64 = 60 << 20;
const PAUSE: Duration = Duration::from_secs(10);

fn machines(count: usize) -> Vec<Machine> {
    vec![Machine::default(); count]
}

fn others(servers: &Fleet, name: &str) -> Vec<String> {
    let mut names = servers.names();
    names.retain(|other| other != name);
    names
}

async fn continues(workload: &Workload, servers: &Fleet, after: &str) -> Result<()> {
    let took = workload
        .next_write()
        .await
        .with_context(|| servers.logs())?;
    ensure!(
        took < BUDGET,
        "{took:?} from {after} to the next acknowledged write\n{}",
        servers.logs()
    );
    println!("from {after} to the next acknowledged write: {took:?}");
    workload.writes(WRITERS).await
}

/// Waits until every server is heard of by the leader, and has nearly all that the leader has.
async fn whole(servers: &Fleet, asked: &str) -> Result<()> {
    until("every server to follow", async || {
        let members = servers.members(asked)?;
        let follows = |member: &Value| {
            member["leader"] == true
                || (member["active"] == true && member["lag"].as_u64().is_some_and(|lag| lag < 100))
        };
        ensure!(members.iter().all(follows), "{members:?}");
        Ok(())
    })
    .await
    .with_context(|| servers.logs())
}

/// Waits until another server leads than the one that did.
async fn replaced(servers: &Fleet, old: &str) -> Result<String> {
    let asked = &others(servers, old)[0];
    until("another leader", async || {
        let leader = servers.leader(asked)?;
        ensure!(leader != old, "{old} leads");
        Ok(leader)
    })
    .await
    .with_context(|| servers.logs())
}

/// A server that is cut off says so, rather than what was true before.
fn says_nothing(servers: &Fleet, name: &str) -> Result<()> {
    let arguments = ["get", "configmaps", "--request-timeout=2s"];
    let answer = servers.kubectl(name, &arguments);
    ensure!(answer.is_err(), "{name} is cut off and answers: {answer:?}");
    Ok(())
}

/// Everybody can speak again: all follow one leader, and nothing was lost.
async fn healed(servers: &Fleet, workload: Workload, asked: &str) -> Result<()> {
    servers.heal()?;
    whole(servers, asked).await?;
    workload.writes(WRITERS).await?;
    let written = workload.finish().await.with_context(|| servers.logs())?;
    println!("{written} writes acknowledged, none lost");
    Ok(())
}

#[test]
fn a_paused_leader_is_replaced_and_follows_when_it_wakes() -> Result<()> {
    Fleet::apart(&machines(3), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let old = servers.leader("s1")?;
        servers.pause(&old)?;
        let paused = Instant::now();
        continues(&workload, servers, "the pause").await?;
        let new = replaced(servers, &old).await?;
        tokio::time::sleep(PAUSE.saturating_sub(paused.elapsed())).await;
        servers.resume(&old)?;
        whole(servers, &new).await?;
        let leader = servers.leader(&old)?;
        ensure!(leader != old, "{leader} leads although it was away");
        healed(servers, workload, &old).await
    })
}

#[test]
fn a_leader_that_cannot_speak_is_replaced() -> Result<()> {
    Fleet::apart(&machines(3), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let old = servers.leader("s1")?;
        for other in others(servers, &old) {
            servers.cut(&old, &other)?;
        }
        continues(&workload, servers, "the leader's loss of voice").await?;
        let new = replaced(servers, &old).await?;
        says_nothing(servers, &old)?;
        healed(servers, workload, &new).await
    })
}

#[test]
fn a_leader_that_cannot_hear_is_replaced() -> Result<()> {
    Fleet::apart(&machines(3), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let old = servers.leader("s1")?;
        for other in others(servers, &old) {
            servers.cut(&other, &old)?;
        }
        continues(&workload, servers, "the leader's loss of hearing").await?;
        let new = replaced(servers, &old).await?;
        says_nothing(servers, &old)?;
        healed(servers, workload, &new).await
    })
}

#[test]
fn a_follower_alone_answers_nothing_and_disturbs_nobody() -> Result<()> {
    Fleet::apart(&machines(3), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let leader = servers.leader("s1")?;
        let alone = others(servers, &leader).remove(0);
        servers.part(std::slice::from_ref(&alone), &others(servers, &alone))?;
        continues(&workload, servers, "the follower's loss").await?;
        says_nothing(servers, &alone)?;
        servers.heal()?;
        whole(servers, &leader).await?;
        let now = servers.leader(&alone)?;
        ensure!(now == leader, "{now} leads since {alone} came back");
        healed(servers, workload, &alone).await
    })
}

#[test]
fn a_leader_alone_is_replaced_and_answers_nothing() -> Result<()> {
    Fleet::apart(&machines(3), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let old = servers.leader("s1")?;
        servers.part(std::slice::from_ref(&old), &others(servers, &old))?;
        continues(&workload, servers, "the leader's loss").await?;
        let new = replaced(servers, &old).await?;
        says_nothing(servers, &old)?;
        healed(servers, workload, &new).await
    })
}

#[test]
fn three_of_five_go_on_without_the_leaders_side() -> Result<()> {
    Fleet::apart(&machines(5), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let old = servers.leader("s1")?;
        let followers = others(servers, &old);
        let (minority, majority) = (
            vec![old.clone(), followers[3].clone()],
            followers[..3].to_vec(),
        );
        servers.part(&minority, &majority)?;
        continues(&workload, servers, "the partition").await?;
        let new = until("a leader of the majority", async || {
            servers.leader(&majority[0])
        })
        .await?;
        ensure!(majority.contains(&new), "{new} leads");
        for cut_off in &minority {
            says_nothing(servers, cut_off)?;
        }
        healed(servers, workload, &new).await
    })
}

#[test]
fn two_of_five_may_die() -> Result<()> {
    Fleet::apart(&machines(5), async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let leader = servers.leader("s1")?;
        let follower = others(servers, &leader).remove(0);
        for name in [&leader, &follower] {
            servers.kill(name)?;
        }
        continues(&workload, servers, "the deaths").await?;
        for name in [&leader, &follower] {
            servers.restart(name)?;
        }
        healed(servers, workload, &leader).await
    })
}

/// The time as a server knows it: that of an object which it makes.
fn clock_of(servers: &Fleet, name: &str, object: &str) -> Result<Timestamp> {
    let created = [
        "create",
        "configmap",
        object,
        "--output=jsonpath={.metadata.creationTimestamp}",
    ];
    Ok(servers.kubectl(name, &created)?.parse()?)
}

#[test]
fn a_leader_whose_clock_jumps_by_an_hour_goes_on_leading() -> Result<()> {
    let mut clocks = machines(3);
    clocks[0].settable_clock = true;
    Fleet::apart(&clocks, async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let jumped = "s1";
        ensure!(servers.leader("s2")? == jumped, "the founder leads");
        servers.set_clock(jumped, "+1h")?;
        let mut attempt = 0;
        until("the clock to have jumped", async || {
            attempt += 1;
            let ahead = clock_of(servers, jumped, &format!("time-{attempt}"))?
                .duration_since(Timestamp::now());
            ensure!(ahead.as_mins() > 50, "it is ahead by {ahead}");
            Ok(())
        })
        .await?;
        continues(&workload, servers, "the jump").await?;
        ensure!(
            servers.leader("s2")? == jumped,
            "a clock has cost the leader its place"
        );
        // Tokens, and the certificates that come of them, hold on both sides of the hour.
        servers.add("s2", jumped)?;
        let fifth = servers.add(jumped, "s3")?;
        servers.kill(jumped)?;
        continues(&workload, servers, "the leader's death").await?;
        // Its certificate is made anew, an hour ahead of those who check it.
        servers.restart(jumped)?;
        whole(servers, &fifth).await?;
        servers.gantry(&fifth, &["member", "transfer-leadership", jumped])?;
        continues(&workload, servers, "its election").await?;
        healed(servers, workload, &fifth).await
    })
}

fn shortage(servers: &Fleet, asked: &str, name: &str) -> Result<bool> {
    let members = servers.members(asked)?;
    let member = members.iter().find(|member| member["name"] == name);
    Ok(member.context("it is a member")?["shortOfRoom"] == true)
}

async fn told_of(servers: &Fleet, asked: &str, reason: &str) -> Result<()> {
    until("an event", async || {
        let selector = format!("reason={reason}");
        let events = ["get", "events", "--field-selector", &selector, "-o", "name"];
        ensure!(!servers.kubectl(asked, &events)?.is_empty(), "no {reason}");
        Ok(())
    })
    .await
}

#[test]
fn a_follower_whose_disk_is_full_harms_nobody_and_takes_part_again_with_room() -> Result<()> {
    let mut disks = machines(3);
    disks[2].disk = Some(DISK);
    Fleet::apart(&disks, async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let (leader, full) = ("s1", "s3");
        ensure!(servers.leader("s2")? == leader, "the founder leads");
        servers.fill(full, FULL)?;
        until("the full server to say so", async || {
            ensure!(shortage(servers, "s2", full)?, "it has room");
            Ok(())
        })
        .await
        .with_context(|| servers.logs())?;
        continues(&workload, servers, "the full disk").await?;
        let listed = servers.gantry("s1", &["member", "list"])?;
        ensure!(listed.contains("disk nearly full"), "{listed}");
        let refused = servers.gantry("s1", &["member", "transfer-leadership", full]);
        let said = format!("{:#}", refused.err().context("it was not refused")?);
        ensure!(
            said.contains("nearly full: make room there first"),
            "{said}"
        );
        told_of(servers, "s2", "DiskFull").await?;
        ensure!(
            servers.leader("s2")? == leader,
            "a follower's disk has cost the leader its place"
        );
        until("its own clients to be told", async || {
            let refused = servers.kubectl(full, &["create", "configmap", "through-it"]);
            let said = format!("{:#}", refused.err().context("it was written")?);
            ensure!(said.contains("make room there"), "{said}");
            Ok(())
        })
        .await?;
        servers.make_room(full)?;
        whole(servers, leader).await?;
        ensure!(!servers.has_ended(full)?, "it has ended");
        told_of(servers, full, "DiskHasRoom").await?;
        healed(servers, workload, leader).await
    })
}

#[test]
fn a_leader_whose_disk_is_full_hands_over() -> Result<()> {
    let mut disks = machines(3);
    disks[0].disk = Some(DISK);
    Fleet::apart(&disks, async |servers| {
        let workload = Workload::start(servers, WRITERS).await?;
        let full = "s1";
        ensure!(servers.leader("s2")? == full, "the founder leads");
        servers.fill(full, SHORT)?;
        until("another server to lead", async || {
            let leader = servers.leader("s2")?;
            ensure!(leader != full, "it leads");
            Ok(())
        })
        .await
        .with_context(|| servers.logs())?;
        continues(&workload, servers, "the leader's full disk").await?;
        servers.make_room(full)?;
        let leader = servers.leader("s2")?;
        whole(servers, &leader).await?;
        ensure!(!servers.has_ended(full)?, "it has ended");
        healed(servers, workload, &leader).await
    })
}

#[test]
fn a_single_server_with_a_full_disk_is_read_only_until_there_is_room() -> Result<()> {
    let mut disks = machines(1);
    disks[0].disk = Some(DISK);
    Fleet::apart(&disks, async |servers| {
        let only = "s1";
        for name in ["before", "surplus"] {
            servers.kubectl(only, &["create", "configmap", name])?;
        }
        servers.fill(only, SHORT)?;
        let mut number = 0;
        let said = until("a write to be refused", async || {
            number += 1;
            let name = format!("while-it-fills-{number}");
            let written = servers.kubectl(only, &["create", "configmap", &name, "-v=6"]);
            Ok(format!("{:#}", written.err().context("it was written")?))
        })
        .await?;
        ensure!(
            said.contains("507 Insufficient Storage")
                && said.contains("nothing can be written")
                && said.contains("MiB left"),
            "{said}"
        );
        // What makes room is taken.
        servers.gantry(only, &["delete", "configmap", "surplus"])?;
        // Everything is there to be read, and to be told of.
        servers.kubectl(only, &["get", "configmap", "before"])?;
        let metrics = servers.kubectl(only, &["get", "--raw", "/metrics"])?;
        ensure!(metrics.contains("gantry_store_read_only 1"), "{metrics}");
        let mut watch =
            servers.spawn_kubectl(only, &["get", "configmaps", "--watch", "-o", "name"])?;
        let mut lines = BufReader::new(watch.stdout.take().context("its output")?).lines();
        lines.next().context("a first line")??;
        servers.make_room(only)?;
        until("a write to be taken again", async || {
            servers.kubectl(only, &["create", "configmap", "after"])
        })
        .await
        .with_context(|| servers.logs())?;
        let seen = lines.find(|line| line.as_ref().is_ok_and(|line| line == "configmap/after"));
        watch.kill()?;
        watch.wait()?;
        ensure!(seen.is_some(), "the watch has ended");
        ensure!(!servers.has_ended(only)?, "it was another process");
        told_of(servers, only, "ReadOnly").await?;
        servers.kubectl(only, &["get", "configmap", "before"])?;
        Ok(())
    })
}
