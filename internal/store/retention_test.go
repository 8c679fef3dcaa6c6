package store_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// roll moves task numbers on to a fresh partition and drops the numbers that this process holds.
func (w *world) roll() {
	w.Helper()
	w.ok(w.db.Pool.QueryRow(w.Context(), "select roll_task_numbers(0, '0')").Scan(new(*int64)))
	w.ids = &store.TaskIDs{Store: w.s}
}

// partitions are the numbers of a table's partitions.
func (w *world) partitions(of string) string {
	w.Helper()
	return value[string](w, `select string_agg(substring(inhrelid::regclass::text from '\d+$'), ' ' order by inhrelid)
		from pg_inherits where inhparent = $1::text::regclass`, of)
}

func (w *world) retain(r store.Retention) store.Retained {
	w.Helper()
	done, err := w.s.Retain(w.Context(), r)
	w.ok(err)
	if done.Busy {
		w.Error("nobody was in the way")
	}
	return done
}

// Partitions are told by when numbers moved on, by the database's clock; ages here are counted from a clock set ahead.
const (
	age  = 30 * 24 * time.Hour
	late = 40 * 24 * time.Hour
)

func TestRetentionDropsAPartitionOnlyWhenEveryTaskInItEndedLongAgo(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now()
	done, failed, open := w.submit(step()), w.submit(step(), step(1)), w.submit(step())
	w.succeed(done.Step(1))
	w.fail(failed.Step(1), task.PermanentFailure)
	w.roll()
	w.roll() // nothing was submitted since: numbers stay
	young := w.submit(step())
	w.roll()
	w.submit(step())
	w.roll()
	equal(w, "too young", w.retain(store.Retention{Tasks: age, Roll: time.Hour}).PartitionsDropped, 0)

	w.pass(late)
	// An unfinished task keeps its partition, and one of three is no straggler.
	r := w.retain(store.Retention{Tasks: age, Roll: time.Hour})
	equal(w, "kept", r.PartitionsDropped+r.TasksPurged, 0)
	equal(w, "tasks", value[int](w, "select count(*) from task"), 4+1)

	w.succeed(open.Step(1))
	equal(w, "ended just now", w.retain(store.Retention{Tasks: age, Roll: time.Hour}).PartitionsDropped, 0)
	w.pass(late)
	r = w.retain(store.Retention{Tasks: age, Roll: time.Hour})
	equal(w, "dropped", r.PartitionsDropped, 1)
	equal(w, "parked rows left", value[int](w, "select count(*) from parked"), 0)
	equal(w, "the unfinished young one stays", w.task(young).State, task.Pending)
	equal(w, "drops are events", value[int](w, "select count(*) from history_v where kind = 'retention' and reason = 'task_p0'"), 2)
	equal(w, "drops are noted", value[string](w, "select partition from partition_drop"), "task_p0")
	found, err := w.s.Tasks(t.Context(), []task.ID{done}, false)
	w.ok(err)
	equal(w, "found", len(found), 0)
}

func TestRetentionDeletesTheRestOfAPartitionThatStragglersHold(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now()
	open := w.submit(step())
	for _, g := range w.claim(10) {
		w.held[g.Step.Token.Step] = g // it stays running
	}
	for range 150 {
		w.submit(step())
	}
	for _, g := range w.claim(1000) {
		w.report(g, task.Success)
	}
	w.roll()
	w.submit(step())
	w.roll()
	w.submit(step())
	w.roll()
	w.pass(late)
	r := w.retain(store.Retention{Tasks: age, Roll: time.Hour})
	equal(w, "dropped", r.PartitionsDropped, 0)
	equal(w, "purged", r.TasksPurged, 150)
	equal(w, "the straggler", w.task(open).State, task.Pending)
	equal(w, "again", w.retain(store.Retention{Tasks: age, Roll: time.Hour}).TasksPurged, 0)
}

// Each statement that finds tasks prepares to look into all partitions, so none is made long before it is needed.
func TestAPartitionIsMadeWhenTheNumbersOfTheOneInUseRunOut(t *testing.T) {
	w := newWorld(t)
	const partition = 1 << 28
	made := func(last int) string {
		_, err := w.db.Pool.Exec(t.Context(), "select setval('task_number_seq', $1)", last)
		w.ok(err)
		_, err = w.s.EnsurePartitions(t.Context(), 0)
		w.ok(err)
		return w.partitions("task")
	}
	equal(w, "at first", made(1), "0")
	equal(w, "a number before seven eighths", made(partition/8*7-1), "0")
	equal(w, "at seven eighths", made(partition/8*7), "0 1")
	equal(w, "in the next one", made(partition), "0 1")
	// Who is quicker than that makes it by the way: these tasks stand in two partitions that are not there.
	_, err := w.db.Pool.Exec(t.Context(), "select setval('task_number_seq', $1)", 3*partition-2-1024)
	w.ok(err)
	w.ids = &store.TaskIDs{Store: w.s}
	for range 4 {
		id := w.submit(step())
		w.succeed(id.Step(1))
		equal(w, "a task beyond the partitions", w.task(id).State, task.Complete)
	}
	equal(w, "made by the way", made(3*partition+10), "0 1 2 3")
}

// The tables of a fresh shard are made by the server's first round of retention, or by a task that comes before it.
func TestASubmitMakesThePartitionsOfItsShard(t *testing.T) {
	w := newWorld(t)
	ids := store.TaskIDs{Store: w.s, Shard: 3}
	const atOnce = 8 // turns that find it missing: the lock in ensure_task_partitions lets one make it
	taken, err := ids.Take(t.Context(), atOnce)
	w.ok(err)
	within, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	only := step()
	only.Name = "s"
	lane, _, err := w.s.EnsureLane(within, store.Lane{NamespaceID: w.ns, Handler: only.Handler, Priority: only.Priority})
	w.ok(err)
	sub := task.Submission{Namespace: "default", Name: "t", Context: "{}", Digest: []byte("digest"), Steps: []task.StepSpec{only}}
	var turns sync.WaitGroup
	for _, id := range taken {
		turns.Go(func() {
			turned, err := w.s.Turn(within, w.ns, []store.NewTask{{ID: id, Lanes: []int32{lane}, Submission: &sub}}, nil, nil)
			if err != nil || turned.Submitted[0].Refused != nil {
				t.Errorf("%v, %+v", err, turned.Submitted)
			}
		})
	}
	turns.Wait()
	for _, id := range taken {
		equal(w, "task", w.task(id).State, task.Pending)
	}
	equal(w, "partitions", w.partitions("step"), "0 12288")
}

func TestRetentionNeverTakesThePartitionInUse(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	w.succeed(id.Step(1))
	var dropped bool
	w.ok(w.db.Pool.QueryRow(t.Context(), "select drop_task_partition(0, now() + interval '1 year')").Scan(&dropped))
	equal(w, "dropped", dropped, false)
	equal(w, "task", w.task(id).State, task.Complete)
}

func TestRetentionOfHistoryWaitsForTasksThatBeganInIt(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now()
	today := time.Now().UTC().Truncate(24 * time.Hour)
	day := func(n int) string { return today.AddDate(0, 0, n).Format(time.DateOnly) }
	w.ok(w.db.Pool.QueryRow(t.Context(), "select ensure_history_partitions($1::date, 12)", day(-12)).Scan(new(int)))
	_, err := w.db.Pool.Exec(t.Context(), "update partition_roll set rolled_at = $1::date", day(-5))
	w.ok(err)
	drop := func(n int) (dropped bool) {
		w.ok(w.db.Pool.QueryRow(t.Context(), "select drop_history_partition($1::date)", day(n)).Scan(&dropped))
		return dropped
	}
	id := w.submit(step())
	equal(w, "before any unfinished task began", drop(-6), true)
	equal(w, "the day it may have begun in", drop(-5), false)
	equal(w, "after it", drop(-4), false)
	w.succeed(id.Step(1))
	equal(w, "once it has ended", drop(-5), true)
	equal(w, "today", drop(0), false)
	equal(w, "no such day", drop(-100), false)
	r := w.retain(store.Retention{History: 3 * 24 * time.Hour})
	equal(w, "days older than three", r.DaysDropped, 12-2-3)
	equal(w, "events", value[int](w, "select count(*) from history where kind = 'retention'"), 2+12-2-3)
}

func TestHistoryOfADayWithoutAPartitionIsKeptAndDropped(t *testing.T) {
	w := newWorld(t) // its clock stands at a day that no partition was made for
	id := w.submit(step())
	w.succeed(id.Step(1))
	events := "select count(*) from history_v where task_id = $1"
	before := value[int](w, events, id)
	w.retain(store.Retention{}) // makes partitions from that day on, as far as it can
	equal(w, "events", value[int](w, events, id), before)
	equal(w, "the day after has a partition", value[bool](w, "select to_regclass('history_20260315') is not null"), true)
	_, err := w.db.Pool.Exec(t.Context(), "update history_default set recorded_at = now() - interval '9 days'")
	w.ok(err)
	w.now = time.Now()
	equal(w, "days", w.retain(store.Retention{History: 3 * 24 * time.Hour}).DaysDropped > 0, true)
	equal(w, "events", value[int](w, events, id), 0)
}

func TestIdempotencyKeysAreKeptUntilSevenDaysAfterTheEnd(t *testing.T) {
	w := newWorld(t)
	ended := w.submitAs(task.Submission{IdempotencyKey: "ended"}, step())
	w.succeed(ended.Step(1))
	w.submitAs(task.Submission{IdempotencyKey: "open"}, step())
	keys := func() int { return value[int](w, "select count(*) from submit_key") }
	w.pass(7*24*time.Hour - time.Second)
	w.retain(store.Retention{})
	equal(w, "keys", keys(), 2)
	w.pass(2 * time.Second)
	equal(w, "forgotten", w.retain(store.Retention{}).KeysForgotten, 1)
	equal(w, "keys", keys(), 1)
}

func TestWorkerSessionsAreKeptAsLongAsWhatNamesThem(t *testing.T) {
	w := newWorld(t)
	w.submit(step())
	w.claim(1) // the session that holds the lease is kept, however long ago it was heard of
	gone := w.open("gone")
	w.ok(w.s.CloseSession(t.Context(), gone.SessionID, gone.Epoch))
	w.open("silent")
	sessions := func() int { return value[int](w, "select count(*) from worker_session") }
	before := sessions()
	week := store.Retention{Tasks: 24 * time.Hour, History: 7 * 24 * time.Hour}
	w.pass(week.History - time.Second)
	equal(w, "forgotten too soon", w.retain(week).SessionsForgotten, 0)
	w.pass(2 * time.Second)
	equal(w, "kept for ever", w.retain(store.Retention{}).SessionsForgotten, 0)
	equal(w, "forgotten", w.retain(week).SessionsForgotten, 2)
	equal(w, "sessions", sessions(), before-2)
	equal(w, "record of it", value[int](w, "select count(*) from history where kind = 'retention' and reason = 'worker_session'"), 1)
}

// A session that is open lives as long as its server, however long ago it was opened.
func TestOpenSessionsOfALiveServerAreKept(t *testing.T) {
	w := newWorld(t)
	w.alive(1) // its server
	w.alive(2) // which has no sessions
	day := store.Retention{Tasks: 24 * time.Hour, History: 24 * time.Hour}
	count := func(table string) int { return value[int](w, "select count(*) from "+table) }
	for range 3 {
		w.pass(3 * 24 * time.Hour)
		w.alive(1)
		equal(w, "forgotten of a live server", w.retain(day).SessionsForgotten, 0)
		equal(w, "servers that are seen, or named", count("replica"), 1)
	}
	w.pass(day.Tasks - time.Second)
	equal(w, "forgotten too soon", w.retain(day).SessionsForgotten, 0)
	w.pass(2 * time.Second)
	equal(w, "forgotten", w.retain(day).SessionsForgotten, 1)
	equal(w, "sessions", count("worker_session"), 0)
	equal(w, "servers", count("replica"), 0)
}

func TestNumbersMoveOnWithoutHandingOneOutTwice(t *testing.T) {
	w := newWorld(t)
	seen := map[task.ID]bool{}
	for range 5 {
		id := w.submit(step())
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
		w.roll()
	}
	equal(w, "partitions used", value[int](w, "select count(distinct tableoid) from task"), 5)
}
