//! What may go wrong in a history: each seed draws which kinds of fault it has, and how often they strike.
//!
//! Not every seed has every fault: a world in which everything breaks hides what breaks with one thing alone.

use crate::rng::Rng;

/// A kind of fault. The module text of `main.rs` says which row of the list of faults each stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// podman could not create or start the container; nothing of it is left.
    CreateFails,
    /// The same, and something of it may be left: it runs.
    CreateFailsDirty,
    /// podman answers after a minute instead of a second.
    PodmanHangs,
    /// The image has to be pulled first, which takes long.
    PullSlow,
    /// A pull fails.
    PullFails,
    /// The image's name comes to mean another image.
    ImageChanges,
    /// The engine ends while it loads.
    ExitsLoading,
    /// The engine never becomes ready.
    HangsLoading,
    /// A ready engine ends.
    DiesServing,
    /// The engine takes a little more memory than it was promised.
    TakesMore,
    /// A stop fails, now and then for ever.
    StopFails,
    /// The engine ignores SIGTERM for long.
    StopSlow,
    /// The driver gives memory back only after half a minute or more.
    ReleaseLags,
    /// The driver never gives it back.
    ReleaseNever,
    /// NVML does not answer.
    NvmlFails,
    /// NVML answers after seconds.
    NvmlSlow,
    /// A device is lost, and comes back.
    DeviceLost,
    /// A foreign process takes memory.
    ForeignGrows,
    /// A foreign process gets the PID of an engine that is gone.
    PidReuse,
    /// A completion of an incarnation that nobody remembers.
    Stale,
    /// The daemon is killed.
    Crash,
    /// The daemon is restarted in order.
    Restart,
    /// A container's labels are damaged while no daemon runs.
    LabelsDamaged,
    /// The configuration is another one after a restart.
    Reconfigured,
    /// The whole machine stands still.
    Stall,
    /// Very many clients come at once.
    Burst,
    /// A request runs for minutes.
    LongStream,
    /// An operator loads or unloads.
    Operator,
    /// What was measured cannot be written down.
    SaveFails,
    /// An engine that is to sleep does not.
    SleepFails,
    /// It never says whether it does.
    SleepHangs,
    /// It keeps more of its memory than it should.
    KeepsTooMuch,
    /// It ends while it sleeps.
    DiesAsleep,
    /// It does not wake.
    WakeFails,
    /// It never says whether it does.
    WakeHangs,
    /// It answers otherwise than after its load.
    CanaryDiffers,
    /// It answers nothing.
    CanaryFails,
    /// An operator does whatever operators may.
    Desk,
    /// The configuration becomes another while the daemon runs.
    Configured,
    /// A ready engine is not well any more, and never again.
    Sickens,
    /// One that is well fails a check.
    CheckFails,
    /// It does not answer a check in time.
    CheckHangs,
}

/// Kinds that concern engines which sleep are drawn apart from all others, and last: without them a seed means what it meant
/// before there were any.
const SLEEPLESS: usize = 29;
/// The same of operators, configurations and checks: they come after those of sleep.
const UNATTENDED: usize = SLEEPLESS + 8;

const ALL: [(Kind, u64); UNATTENDED + 5] = [
    (Kind::CreateFails, 20),
    (Kind::CreateFailsDirty, 10),
    (Kind::PodmanHangs, 10),
    (Kind::PullSlow, 20),
    (Kind::PullFails, 30),
    (Kind::ImageChanges, 20),
    (Kind::ExitsLoading, 20),
    (Kind::HangsLoading, 10),
    (Kind::DiesServing, 20),
    (Kind::TakesMore, 30),
    (Kind::StopFails, 20),
    (Kind::StopSlow, 30),
    (Kind::ReleaseLags, 30),
    (Kind::ReleaseNever, 4),
    (Kind::NvmlFails, 15),
    (Kind::NvmlSlow, 20),
    (Kind::DeviceLost, 3),
    (Kind::ForeignGrows, 8),
    (Kind::PidReuse, 50),
    (Kind::Stale, 5),
    (Kind::Crash, 1),
    (Kind::Restart, 1),
    (Kind::LabelsDamaged, 20),
    (Kind::Reconfigured, 40),
    (Kind::Stall, 2),
    (Kind::Burst, 8),
    (Kind::LongStream, 8),
    (Kind::Operator, 6),
    (Kind::SaveFails, 50),
    (Kind::SleepFails, 20),
    (Kind::SleepHangs, 10),
    (Kind::KeepsTooMuch, 30),
    (Kind::DiesAsleep, 30),
    (Kind::WakeFails, 20),
    (Kind::WakeHangs, 10),
    (Kind::CanaryDiffers, 50),
    (Kind::CanaryFails, 15),
    (Kind::Desk, 40),
    (Kind::Configured, 10),
    (Kind::Sickens, 20),
    (Kind::CheckFails, 20),
    (Kind::CheckHangs, 15),
];

fn draw(rates: &mut [u64], kinds: &[(Kind, u64)], rng: &mut Rng) {
    let calm = rng.chance(12);
    for (rate, (_, most)) in rates.iter_mut().zip(kinds) {
        if rng.chance(40) && !calm {
            *rate = 1 + rng.below(*most);
        }
    }
}

/// How often each kind strikes, in percent of the occasions.
#[derive(Clone, Debug)]
pub struct Weather([u64; ALL.len()]);

impl Weather {
    /// Each kind is in about four of ten histories, and none is in one of eight.
    pub fn draw(rng: &mut Rng) -> Self {
        let mut rates = [0; ALL.len()];
        draw(&mut rates[..SLEEPLESS], &ALL[..SLEEPLESS], rng);
        Self(rates)
    }

    /// The same for those that concern sleep.
    pub fn draw_night(&mut self, rng: &mut Rng) {
        let night = SLEEPLESS..UNATTENDED;
        draw(&mut self.0[night.clone()], &ALL[night], rng);
    }

    /// The same for operators, configurations and checks.
    pub fn draw_office(&mut self, rng: &mut Rng) {
        draw(&mut self.0[UNATTENDED..], &ALL[UNATTENDED..], rng);
    }

    /// Nothing ever goes wrong.
    pub fn clear_sky() -> Self {
        Self([0; ALL.len()])
    }

    /// From now on one kind strikes as often as this.
    pub fn set(&mut self, kind: Kind, rate: u64) {
        self.0[kind as usize] = rate;
    }

    /// Nothing goes wrong any more.
    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Whether it goes wrong this time.
    pub fn strikes(&self, kind: Kind, rng: &mut Rng) -> bool {
        debug_assert_eq!(ALL[kind as usize].0, kind);
        let rate = self.0[kind as usize];
        rate > 0 && rng.chance(rate)
    }
}
