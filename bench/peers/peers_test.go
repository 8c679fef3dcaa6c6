package peers_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/bench/peers"
	"github.com/taskerhq/tasker/bench/peers/harness"
)

// mode is where the environment says what this binary is: a peer's program, rather than the tests.
const mode = "TEST_PEER"

func TestMain(m *testing.M) {
	if os.Getenv(mode) == "" {
		os.Exit(m.Run())
	}
	harness.Main(harness.Identity{Peer: "lazy", Version: "7", Batch: 1, Submitters: 1}, func(_ context.Context, target string) (harness.Queue, error) {
		if target == "" {
			return nil, errors.New("nowhere to go")
		}
		return lazy{}, nil
	})
}

// lazy takes every job, and does not work.
type lazy struct{}

func (lazy) Submit(context.Context, int, int) error         { return nil }
func (lazy) SubmitOne(context.Context, int) error           { return nil }
func (lazy) Work(context.Context, func(int)) error          { return errors.New("not today") }
func (lazy) Completed(context.Context) (n int64, err error) { return 0, nil }
func (lazy) Close(context.Context) error                    { return nil }

func TestAProgramIsToldAndAnswers(t *testing.T) {
	t.Setenv("TASKER_LISTEN", "elsewhere")
	p, err := peers.Spawn(t.Context(), "/", []string{mode + "=1", "PEER_TARGET=there"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	var who harness.Identity
	if err := p.Answer(t.Context(), "", &who); err != nil || who.Peer != "lazy" || who.Version != "7" {
		t.Fatalf("it is %+v, %v", who, err)
	}
	var m harness.Measurement
	if err := p.Answer(t.Context(), "fill 5", &m); err != nil || m.Jobs != 5 {
		t.Errorf("it answers %+v, %v", m, err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("it ends with its input, and says %v", err)
	}
}

// What a program says last is all that there is to find out why it ended.
func TestAProgramThatEndsIsQuoted(t *testing.T) {
	for _, test := range []struct{ target, command, want string }{
		{"", "", "nowhere to go"},
		{"there", "drain", "not today"},
	} {
		p, err := peers.Spawn(t.Context(), "/", []string{mode + "=1", "PEER_TARGET=" + test.target}, os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		var who harness.Identity
		err = p.Answer(t.Context(), "", &who)
		if test.command != "" && err == nil {
			err = p.Answer(t.Context(), test.command, &harness.Measurement{})
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want its last words %q", test.command, err, test.want)
		}
		if err := p.Stop(); err == nil {
			t.Errorf("%q: it ended well", test.command)
		}
	}
}

func TestAPeerThatIsMissingFailsTheRun(t *testing.T) {
	for _, test := range []struct{ peer, want string }{
		{"river", "river is not installed: there is no bin/peers/river; make bench-peers installs it"},
		{"tasker", "tasker is not installed: there is no bin/tasker"},
		{"pg-boss", "pg-boss is not installed: there is no bench/peers/node/node_modules/pg-boss"},
		{"oracle", `there is no peer "oracle"; there are floor, tasker, river, dbos, graphile-worker, pg-boss`},
	} {
		_, err := peers.Run(t.Context(), peers.Config{Root: t.TempDir(), Quick: true, Peers: []string{"floor", test.peer}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.peer, err, test.want)
		}
	}
}

// page is the document of two rounds in which all went well, but for pg-boss's second one.
func page(t *testing.T, quick bool) string {
	t.Helper()
	made := func(peer string, rates [2]float64, wal float64, others [2]float64) []peers.Made {
		var both []peers.Made
		for round := range rates {
			both = append(both, peers.Made{Peer: peer, Round: round, Rate: rates[round], WAL: wal, Others: others[round], Version: "1.2"})
		}
		return both
	}
	var all []peers.Made
	all = append(all, made("floor", [2]float64{40000, 50000}, 1500, [2]float64{})...)
	all = append(all, made("tasker", [2]float64{20000, 30000}, 1600, [2]float64{0.1, 0.3})...)
	all = append(all, made("river", [2]float64{10000, 40000}, 3200, [2]float64{})...)
	all = append(all, made("pg-boss", [2]float64{5000, 5000}, 1700, [2]float64{0.1, 0.9})...)
	var b strings.Builder
	if err := peers.DocumentOf(quick, 2, all...).Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestThePageTellsMedianAndSpread(t *testing.T) {
	text := page(t, false)
	for _, want := range []string{
		"| tasker | 25,000 (20,000–30,000) | 25,000 (20,000–30,000) | 1.00 (1.00–1.00) |",
		"| log bytes of a whole life, Tasker ÷ River | 0.500 (0.500–0.500) | ≤ 0.7 | yes |",
		// Of the rounds, not of the medians: those would give exactly 1.
		"| backlog worked off a second, Tasker ÷ River | 1.38 (0.750–2.00) | > 1 | yes |",
		"| whole lives a second, Tasker ÷ the floor | 0.550 (0.500–0.600) | ≥ 0.6 | no |",
		"| whole lives a second, Tasker ÷ River | 1.38 (0.750–2.00) | – | – |",
		"tasker 1.2, river 1.2, pg-boss 1.2",
		"2026-01-02 03:04 UTC, for 1m30s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	// What was not run is neither a row nor compared with.
	for _, none := range []string{"dbos", "DBOS |", "graphile", "NaN", "quick run", "```"} {
		if strings.Contains(text, none) {
			t.Errorf("the page has %q:\n%s", none, text)
		}
	}
	if !strings.Contains(page(t, true), "quick run") {
		t.Error("the page of a quick run does not say so")
	}
}

func TestWhatWasDisturbedIsMarked(t *testing.T) {
	for line := range strings.Lines(page(t, false)) {
		marked := strings.Contains(line, "†")
		switch {
		case strings.HasPrefix(line, "| pg-boss |"), strings.HasPrefix(line, "† "), strings.Contains(line, "÷ pg-boss"):
			if !marked {
				t.Errorf("no mark: %s", line)
			}
		case marked:
			t.Errorf("a mark too many: %s", line)
		}
	}
}
