//! The production core (`State`, and the planner under it) in a made-up world, from one seed.
//!
//! The world has devices, foreign processes, containers that start slowly, fail, hang, die, stop late or refuse to stop,
//! a driver that gives memory back late, and clients that come, wait, leave and come back. After every step the
//! invariants of `world::check` hold; at the end every request has been answered and nothing is left.
//!
//! `SEEDS=n` explores more seeds, `SEED=s` replays one and prints its history.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod rng;
mod world;

use world::World;

/// Steps of one history before the world is left to settle.
const STEPS: u32 = 300;

fn run(seed: u64) -> Result<World, String> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step().map_err(|why| format!("{why}\n{}", world.tail()))?;
    }
    world.settle().map_err(|why| format!("{why}\n{}", world.tail()))?;
    Ok(world)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn no_seed_breaks_an_invariant() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(500),
    };
    let (mut grants, mut denials, mut loads, mut evictions) = (0, 0, 0, 0);
    for seed in seeds.clone() {
        match run(seed) {
            Ok(world) => {
                grants += world.stats.grants;
                denials += world.stats.denials;
                loads += world.stats.loads;
                evictions += world.stats.evictions;
                if number("SEED").is_some() {
                    println!("{}", world::lines(&world.history));
                }
            }
            Err(why) => panic!("seed {seed}: {why}\nreplay with SEED={seed} make sim"),
        }
    }
    println!(
        "{} seeds: {grants} grants, {denials} denials, {loads} loads, {evictions} evictions",
        seeds.end - seeds.start
    );
    // A world in which nothing happens proves nothing.
    let many = seeds.end - seeds.start;
    if many >= 100 {
        assert!(grants > 20 * many, "{grants} grants");
        assert!(denials > many, "{denials} denials");
        assert!(evictions > many, "{evictions} evictions");
    }
}

#[test]
fn one_seed_gives_one_history() {
    for seed in [1, 77, 4242] {
        let (a, b) = (run(seed).unwrap(), run(seed).unwrap());
        assert_eq!(world::lines(&a.history), world::lines(&b.history));
    }
    assert_ne!(world::lines(&run(1).unwrap().history), world::lines(&run(2).unwrap().history));
}
