//! One seed.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ordering::identifiers::ClientId;
use ordering::message::ClientMessage;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checker;
use crate::honest::{Fate, Honest, Records};
use crate::liar::Liar;
use crate::menu::Names;
use crate::network::Network;
use crate::server::Ending;
use crate::session::Session;
use crate::topic::{Topic, Topics};
use crate::turns::{Actor, Phase, turns};
use crate::world::{HONEST, LIAR, Servers, World, machines};

/// How long a client that has its turn is waited for, before another has it.
const TURN: Duration = Duration::from_millis(25);

/// How long nobody may be able to act before transactions whose clients have gone are ended.
const JAM: Duration = Duration::from_millis(400);

/// How long the comparison of effects may take after that. With a voter that lies some orders stay open.
const COMPARED: Duration = Duration::from_millis(800);

/// How long the voters may take to execute what was ordered once everything is healed.
const SETTLE: Duration = Duration::from_secs(10);

/// How long all clients may take to end.
const CLIENTS: Duration = Duration::from_secs(40);

/// What a run is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What seeds may bring up.
    pub topics: Topics,
    /// Whether to print what happens.
    pub trace: bool,
}

/// What a seed does besides its clients.
struct Weather {
    lag: bool,
    restarts: bool,
    crashes: bool,
    power_cuts: bool,
    crashes_left: u32,
}

impl Weather {
    fn draw(random: &mut ChaCha8Rng, topics: &Topics) -> Self {
        let mut is = |topic, share| topics.has(topic) && random.random_ratio(1, share);
        let crashes = is(Topic::Crashes, 4);
        Self {
            lag: is(Topic::Lag, 2),
            restarts: is(Topic::Restarts, 2),
            power_cuts: is(Topic::PowerCuts, 6),
            crashes,
            crashes_left: 1,
        }
    }
}

/// What a seed came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What was violated.
    pub violations: Vec<String>,
    /// Orders of which voters have compared the effects, summed over the voters.
    pub compared: u64,
    /// Transactions of honest clients that they were told to be committed.
    pub committed: usize,
    /// Those that were not, by their client's wish or not.
    pub absent: usize,
    /// Those of which their clients were told nothing.
    pub unknown: usize,
}

/// Runs a seed on servers.
pub async fn run(servers: &Arc<Servers>, seed: u64, options: &Options) -> Outcome {
    let started = std::time::Instant::now();
    let database = format!("seed_{seed}");
    servers.create(&database).await;
    let created = started.elapsed();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let liar = (options.topics.has(Topic::LyingVoter) && random.random_ratio(1, 4)).then(|| random.random_range(1..=3));
    let network = Network::new(liar, seed, options.trace);
    let floor = *[30, 200, 5000].choose(&mut random).unwrap();
    network.note(|| format!("seed {seed}: lying voter {liar:?}, floor every {floor} ms"));
    let floor = Duration::from_millis(floor);
    let world = World::start(network, Arc::clone(servers), database.clone(), floor).await;
    world
        .network
        .note(|| format!("created after {created:?}, started after {:?}", started.elapsed()));
    let records = Records::default();
    let actors = clients(&world, &mut random, options, &records);
    let weather = Weather::draw(&mut random, &options.topics);
    drive(&world, actors, random, weather).await;
    world
        .network
        .note(|| format!("clients are done after {:?}", started.elapsed()));
    let told = records.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut compared = 0;
    match world.settle(SETTLE).await {
        Ok(()) => {
            checker::check(&world, &told).await;
            compared = world.compare_effects(COMPARED).await;
        }
        Err(stuck) => world.violation(stuck),
    }
    world.network.note(|| format!("checked after {:?}", started.elapsed()));
    world.stop().await;
    servers.remove(&database).await;
    let count = |fate: Fate| told.iter().filter(|record| record.fate == fate).count();
    Outcome {
        violations: world.violations(),
        compared,
        committed: count(Fate::Committed),
        absent: count(Fate::Absent),
        unknown: count(Fate::Unknown),
    }
}

fn clients(world: &Arc<World>, random: &mut ChaCha8Rng, options: &Options, records: &Records) -> Vec<Actor> {
    let honest = random.random_range(2..=3);
    let liars = random.random_range(1..=2);
    let mut actors = Vec::new();
    for number in 0..=honest + liars {
        let (turn, actor) = turns();
        let reads_only = number == honest + liars;
        let is_honest = number < honest || reads_only;
        if reads_only && !options.topics.has(Topic::Reads) {
            break;
        }
        let session = Session {
            world: Arc::clone(world),
            client: if is_honest { HONEST } else { LIAR },
            session: number + 1,
            turn,
            random: ChaCha8Rng::seed_from_u64(random.random()),
            names: Names::new(i32::try_from(number + 1).unwrap()),
            topics: options.topics.clone(),
            transactions: 0,
        };
        if is_honest {
            let honest = Honest {
                session,
                records: Arc::clone(records),
                programs: random.random_range(2..=5) * if reads_only { 3 } else { 1 },
                reads_only,
            };
            tokio::spawn(honest.run());
        } else {
            let liar = Liar {
                session,
                programs: random.random_range(1..=3),
                words: Vec::new(),
            };
            tokio::spawn(liar.run());
        }
        actors.push(actor);
    }
    actors
}

async fn drive(world: &Arc<World>, mut actors: Vec<Actor>, mut random: ChaCha8Rng, mut weather: Weather) {
    let started = tokio::time::Instant::now();
    let mut moved = started;
    let mut alive = started;
    loop {
        if alive.elapsed() > Duration::from_millis(500) {
            alive = tokio::time::Instant::now();
            keep_alive(world).await;
        }
        let ready: Vec<usize> = (0..actors.len())
            .filter(|at| actors[*at].phase() == Phase::Ready)
            .collect();
        if let Some(at) = ready.choose(&mut random) {
            if change_weather(world, &mut random, &mut weather).await
                && let Some(reader) = actors.last_mut().filter(|reader| reader.phase() == Phase::Ready)
            {
                // Nobody may see that servers have forgotten what was acknowledged.
                reader.act(Duration::from_millis(300)).await;
                continue;
            }
            actors[*at].act(TURN).await;
            moved = tokio::time::Instant::now();
            continue;
        }
        if actors.iter().all(|actor| actor.phase() == Phase::Done) {
            return;
        }
        if moved.elapsed() > JAM {
            moved = tokio::time::Instant::now();
            for machine in machines() {
                world.network.hold(machine, false);
                world.start_server(machine).await;
            }
            world.abandon();
        }
        if started.elapsed() > CLIENTS {
            return world.violation("clients do not come to an end".into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn keep_alive(world: &World) {
    for machine in machines() {
        for client in [HONEST, LIAR] as [ClientId; 2] {
            world
                .network
                .client_message(machine, client, ClientMessage::KeepAlive)
                .await;
        }
    }
}

/// Something may befall the machines; true when the power was cut.
async fn change_weather(world: &Arc<World>, random: &mut ChaCha8Rng, weather: &mut Weather) -> bool {
    let machine = random.random_range(1..=3);
    if weather.lag && random.random_ratio(1, 6) {
        let held = random.random_ratio(1, 2);
        world.network.note(|| format!("m{machine} lags: {held}"));
        world.network.hold(machine, held);
    }
    if weather.restarts && random.random_ratio(1, 12) {
        world.network.note(|| format!("m{machine}'s voter restarts"));
        world.stop_voter(machine).await;
        world.start_voter(machine).await;
    }
    if weather.crashes && weather.crashes_left > 0 && random.random_ratio(1, 25) {
        weather.crashes_left -= 1;
        let ending = *[Ending::Quit, Ending::Kill].choose(random).unwrap();
        crash(world, machine, ending).await;
        if random.random_ratio(1, 2) {
            world.start_server(machine).await;
        }
    }
    if weather.power_cuts && random.random_ratio(1, 15) {
        weather.power_cuts = false;
        for machine in machines() {
            crash(world, machine, Ending::Kill).await;
        }
        for machine in machines() {
            // What the servers have lost comes back late.
            world.network.hold(machine, weather.lag);
            world.start_server(machine).await;
        }
        for machine in machines() {
            // The machines were off, not the servers alone.
            world.stop_voter(machine).await;
            world.start_voter(machine).await;
        }
        for machine in machines() {
            world.wait_until_serving(machine).await;
        }
        return true;
    }
    false
}

async fn crash(world: &Arc<World>, machine: u8, ending: Ending) {
    world
        .network
        .note(|| format!("m{machine}'s server crashes: {ending:?}"));
    let servers = Arc::clone(&world.servers);
    tokio::task::spawn_blocking(move || servers.of(machine).end(ending))
        .await
        .unwrap();
}
