//! `hostler top`: devices, models and requests, live; and whether models that run elsewhere live.
//!
//! Invariants: what is drawn is one status of the daemon, never a mixture of two; the terminal is given back however this ends.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use super::bus::Bus;
use super::document::{Document, External, Gpu, Model};
use super::exit::{Exit, Failure, Outcome};
use super::output::{NONE, Tone, span};
use super::signals;
use super::status::bytes;
use super::{Context, elsewhere};
use crate::types::Bytes;

mod rates;

use rates::Rates;

/// How long a key may wait.
const KEYS: Duration = Duration::from_millis(100);
/// How long the daemon may take to answer before what is shown is of no worth.
const ANSWER: Duration = Duration::from_secs(30);
/// How many models that run elsewhere have a row at the most.
const ELSEWHERE: usize = 6;

/// Watches devices, models and requests, and models that run elsewhere. q leaves.
#[derive(Debug, Args)]
pub struct Top {
    /// Between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = super::wait::time)]
    every: Duration,
}

impl Top {
    pub async fn run(self, context: &Context) -> Outcome {
        context.out.no_document("top", "hostler status --json, as often as you like")?;
        if !std::io::stdout().is_terminal() {
            return Err(Failure::new(Exit::Usage, "top needs a terminal").fix("hostler status"));
        }
        let bus = context.bus().await?;
        let (_, document) = bus.status().await?;
        // Before the terminal is another: whoever ends this gives it back.
        let mut signals = signals::hold();
        let mut terminal = ratatui::try_init()?;
        let ended = tokio::select! {
            ended = self.watch(&bus, &mut terminal, document) => ended,
            () = signals.interrupted() => Err(Failure::said(Exit::Interrupted)),
        };
        ratatui::restore();
        ended
    }

    /// Draws what is there and looks again, until a key says that it is enough. Keys are looked for on a thread of their own: a daemon that
    /// does not answer must not keep anybody here.
    async fn watch(
        &self,
        bus: &Bus,
        terminal: &mut DefaultTerminal,
        mut document: Document,
    ) -> Outcome {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let mut rates = Rates::default();
        rates.note(&document);
        let mut keys = tokio::task::spawn_blocking(asked_to_leave);
        let mut look = Box::pin(self.look(bus));
        loop {
            terminal.draw(|frame| draw(frame, &document, &rates, plain))?;
            tokio::select! {
                left = &mut keys => {
                    if left.map_err(std::io::Error::from)?? {
                        return Ok(());
                    }
                    keys = tokio::task::spawn_blocking(asked_to_leave);
                }
                next = &mut look => {
                    document = next?;
                    rates.note(&document);
                    look.set(self.look(bus));
                }
            }
        }
    }

    /// The next status, when it is due.
    async fn look(&self, bus: &Bus) -> Outcome<Document> {
        tokio::time::sleep(self.every).await;
        match tokio::time::timeout(ANSWER, bus.status()).await {
            Ok(status) => status.map(|(_, document)| document),
            Err(_) => Err(Failure::new(Exit::Failed, "the daemon does not answer any more")
                .fix("hostler doctor")),
        }
    }
}

/// Looks for a key for a moment.
fn asked_to_leave() -> std::io::Result<bool> {
    if !event::poll(KEYS)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    Ok(interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// A part of a device's memory: its sign, its colour, its name.
const PARTS: [(&str, Color, &str); 6] = [
    ("█", Color::Green, "held by ready models"),
    ("▓", Color::Yellow, "promised"),
    ("▒", Color::Cyan, "being given back"),
    ("x", Color::Red, "not given back"),
    ("o", Color::Magenta, "others"),
    ("·", Color::DarkGray, "kept free"),
];

fn draw(frame: &mut Frame<'_>, document: &Document, rates: &Rates, plain: bool) {
    let gpus = u16::try_from(document.gpus.len()).unwrap_or(u16::MAX).min(16);
    let problems = u16::try_from(document.problems.len()).unwrap_or(u16::MAX).min(4);
    let rest = usize::from(frame.area().height.saturating_sub(problems + gpus + 4));
    let away = elsewhere_rows(rest, document);
    let lines = u16::try_from(if away == 0 { 0 } else { away + 1 }).unwrap_or(0);
    let areas = Layout::vertical([
        Constraint::Length(1 + problems),
        Constraint::Length(1),
        Constraint::Length(gpus + 1),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(u16::from(away > 0)),
        Constraint::Length(lines),
    ])
    .split(frame.area());
    let [head, _, ledger, _, models, _, others] = areas.as_ref() else { return };
    let paint = |color: Color| if plain { Style::new() } else { Style::new().fg(color) };
    let (running, waiting) =
        document.models.iter().fold((0, 0), |(r, w), m| (r + m.in_flight, w + m.queued));
    let mut lines = vec![Line::raw(format!(
        "hostler {}: {}, up {}; requests: {running} running, {waiting} waiting; q leaves",
        document.version,
        document.state,
        span(document.now)
    ))];
    for problem in document.problems.iter().take(4) {
        let text = format!("{}: {}", problem.code, problem.message);
        lines.push(Line::styled(text, paint(Color::Red)));
    }
    frame.render_widget(Paragraph::new(lines), *head);
    let width = usize::from(ledger.width).saturating_sub(58).clamp(10, 80);
    let mut lines: Vec<Line<'_>> =
        document.gpus.iter().take(16).map(|gpu| bar(gpu, width, &paint)).collect();
    let mut legend = Vec::new();
    for (sign, color, name) in PARTS {
        legend.push(Span::styled(sign, paint(color)));
        legend.push(Span::raw(format!(" {name}  ")));
    }
    lines.push(Line::from(legend));
    frame.render_widget(Paragraph::new(lines), *ledger);
    table(frame, *models, document, rates, &paint);
    if away > 0 {
        elsewhere_table(frame, *others, document, away, &paint);
    }
}

/// A device's ledger as one line.
fn bar<'a>(gpu: &Gpu, width: usize, paint: &impl Fn(Color) -> Style) -> Line<'a> {
    let id: String = gpu.id.chars().take(16).collect();
    let mut spans = vec![Span::raw(format!("{id:16} "))];
    let Some(total) = gpu.total else {
        spans.push(Span::styled("its memory is not known", paint(Color::Red)));
        return Line::from(spans);
    };
    spans.push(Span::raw("["));
    let amounts = amounts(gpu);
    let cells = cells(&amounts, total, width);
    for ((sign, color, _), count) in PARTS.iter().zip(cells) {
        spans.push(Span::styled(sign.repeat(count), paint(*color)));
    }
    spans.push(Span::raw(" ".repeat(width.saturating_sub(cells.iter().sum()))));
    let free = bytes(gpu.free);
    spans.push(Span::raw(format!("] {free} free of {total}  {}", gpu.name)));
    Line::from(spans)
}

/// In the order of [`PARTS`].
fn amounts(gpu: &Gpu) -> [Bytes; 6] {
    let foreign = gpu.foreign.unwrap_or_default();
    [gpu.confirmed, gpu.reserved, gpu.releasing, gpu.quarantined, foreign, gpu.headroom]
}

/// How many cells of a bar each amount takes: what is there at all is seen, and all together are never more than the bar.
fn cells(amounts: &[Bytes; 6], total: Bytes, width: usize) -> [usize; 6] {
    let mut left = width;
    amounts.map(|amount| {
        let share = u128::from(amount.0) * width as u128 / u128::from(total.0.max(1));
        let count =
            usize::try_from(share).unwrap_or(width).max(usize::from(amount.0 > 0)).min(left);
        left -= count;
        count
    })
}

fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    document: &Document,
    rates: &Rates,
    paint: &impl Fn(Color) -> Style,
) {
    // The head takes a line.
    let more = document.models.len().saturating_sub(usize::from(area.height).saturating_sub(1));
    let models = match more {
        0 => "MODEL".to_owned(),
        more => format!("MODEL ({more} more)"),
    };
    let head = [
        models.as_str(),
        "PHASE",
        "PIN",
        "DEVICES",
        "NEEDS",
        "HOLDS",
        "RUN",
        "WAIT",
        "CHUNKS/S",
        "USED",
    ]
    .map(str::to_owned);
    let row = |model: &Model| {
        let color = match model.phase.as_str() {
            "ready" => Color::Green,
            "failed" => Color::Red,
            "stopped" => Color::DarkGray,
            "asleep" => Color::Blue,
            _ => Color::Yellow,
        };
        let used = model.last_used.map(|at| span(document.now.saturating_sub(at)));
        let cells: Vec<Cell<'static>> = vec![
            Cell::from(model.name.clone()),
            Cell::from(Span::styled(model.phase.clone(), paint(color))),
            Cell::from(if model.pinned { "pin" } else { "" }),
            Cell::from(model.gpus.join(",")),
            Cell::from(bytes(model.planned.as_ref().map(|need| need.bytes))),
            Cell::from(bytes(model.observed)),
            Cell::from(model.in_flight.to_string()),
            Cell::from(model.queued.to_string()),
            Cell::from(
                rates.of(&model.name).map_or_else(|| NONE.to_owned(), |r| format!("{r:.0}")),
            ),
            Cell::from(used.unwrap_or_default()),
        ];
        Row::new(cells)
    };
    // What fails or waits first, then what runs, for those at the end may have no room; each group in the order of the names.
    let mut models: Vec<&Model> = document.models.iter().collect();
    models.sort_by_key(|m| match m.phase.as_str() {
        "failed" | "waiting" => 0,
        "stopped" => 2,
        _ => 1,
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(9),
        Constraint::Length(3),
        Constraint::Fill(1),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(4),
        Constraint::Length(4),
        Constraint::Length(8),
        Constraint::Length(8),
    ];
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let table = Table::new(models.into_iter().map(row), widths).header(Row::new(head).style(bold));
    frame.render_widget(table, area);
}

/// How many of those that run elsewhere are shown in the `rest` of the screen: this host's models have what they need of it, or half.
fn elsewhere_rows(rest: usize, document: &Document) -> usize {
    let room = rest.saturating_sub(document.models.len() + 1).max(rest / 2);
    // A line between, and the head.
    document.externals.len().min(ELSEWHERE).min(room.saturating_sub(2))
}

/// Those that run elsewhere: they have neither phase nor memory here, so they are no rows among the models.
fn elsewhere_table(
    frame: &mut Frame<'_>,
    area: Rect,
    document: &Document,
    shown: usize,
    paint: &impl Fn(Color) -> Style,
) {
    let row = |external: &External| {
        let color = match elsewhere::tone(&external.health) {
            Tone::Good => Color::Green,
            Tone::Bad => Color::Red,
            Tone::Warn | Tone::Dim | Tone::Plain => Color::Yellow,
        };
        let age = elsewhere::age(document, external);
        Row::new([
            Cell::from(external.name.clone()),
            Cell::from(Span::styled(external.health.clone(), paint(color))),
            Cell::from(age.unwrap_or_else(|| NONE.to_owned())),
            Cell::from(external.url.clone()),
            Cell::from(external.why.clone().unwrap_or_default()),
        ])
    };
    // Those that are not well first; each group in the order of the names. So those without a row are well, if any is.
    let mut externals: Vec<&External> = document.externals.iter().collect();
    externals.sort_by_key(|e| e.health == "well");
    let more = externals.len().saturating_sub(shown);
    let head = match more {
        0 => "ELSEWHERE".to_owned(),
        more => format!("ELSEWHERE ({more} more)"),
    };
    let head = Row::new([head.as_str(), "HEALTH", "FOR", "URL", "NOTE"].map(str::to_owned));
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Fill(3),
        Constraint::Fill(3),
    ];
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let rows = externals.into_iter().take(shown).map(row);
    frame.render_widget(Table::new(rows, widths).header(head.style(bold)), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::document::tests::example;

    fn drawn(document: &Document, rates: &Rates, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, document, rates, true)).unwrap();
        format!("{}", terminal.backend())
    }

    #[test]
    fn as_expected() {
        let mut rates = Rates::default();
        let mut before = example();
        before.now -= Duration::from_secs(2);
        before.models[0].chunks = Some(1000);
        rates.note(&before);
        rates.note(&example());
        crate::cli::tests::compare("top.txt", &drawn(&example(), &rates, (110, 20)));
    }

    #[test]
    fn those_elsewhere_take_no_room_from_those_here_and_the_dead_are_seen() {
        let mut document = example();
        let well = document.external("cloud").unwrap().clone();
        document.externals = (0..9)
            .map(|at| External { name: format!("far/{at}"), ..well.clone() })
            .chain([document.external("far/dead").unwrap().clone()])
            .collect();
        let rates = Rates::default();
        let whole = drawn(&document, &rates, (110, 24));
        assert!(whole.contains("ELSEWHERE (4 more)"), "{whole}");
        let at = |text: &str| whole.find(text).unwrap_or_else(|| panic!("no {text} in {whole}"));
        assert!(at("far/dead") < at("far/0") && at("far/0") < at("far/4"), "{whole}");
        assert!(!whole.contains("far/5"), "{whole}");
        // Half of what is left of a small screen is this host's models', and all of a very small one.
        let small = drawn(&document, &rates, (110, 15));
        assert!(
            small.contains("MODEL (7 more)")
                && small.contains("waits  ")
                && small.contains("ELSEWHERE (8 more)"),
            "{small}"
        );
        assert!(small.contains("far/0") && !small.contains("far/1"), "{small}");
        let smallest = drawn(&document, &rates, (110, 10));
        assert!(smallest.contains("broken  ") && !smallest.contains("ELSEWHERE"), "{smallest}");
        document.externals.clear();
        assert!(!drawn(&document, &rates, (110, 24)).contains("ELSEWHERE"));
    }

    #[test]
    fn a_bar_is_never_longer_than_it_is() {
        let gib = Bytes::gib;
        let whole = cells(&[gib(50), gib(50), gib(50), gib(1), gib(1), gib(1)], gib(100), 20);
        assert_eq!(whole, [10, 10, 0, 0, 0, 0]);
        let little =
            cells(&[Bytes(1), Bytes(0), Bytes(0), Bytes(0), gib(50), Bytes(0)], gib(100), 20);
        assert_eq!(little, [1, 0, 0, 0, 10, 0]);
    }
}
