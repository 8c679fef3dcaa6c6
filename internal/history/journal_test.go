package history_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskerhq/tasker/internal/history"
)

const step1, step2, step3, step4 = 1<<14 + 1, 1<<14 + 2, 1<<14 + 3, 1<<14 + 4

// seen are what two workers and a client would have written down while the clean record was made, but for the tasks that
// have been purged.
func seen() (workers, client []history.Entry) {
	run := func(step int64, dispatch int, outcome string) {
		token := history.TokenDigest(fmt.Sprintf("%d/%d", step, dispatch))
		workers = append(workers, history.Entry{Kind: history.FrameReceived, StepID: step, Dispatch: dispatch, Token: token})
		if outcome == "" {
			return
		}
		workers = append(workers,
			history.Entry{Kind: history.ReportSent, Token: token, Outcome: outcome},
			history.Entry{Kind: history.ReportAnswered, Token: token, Outcome: outcome})
	}
	run(step1, 1, "success")
	run(step2, 1, "retryable_failure")
	run(step2, 2, "") // its late report below
	run(step2, 3, "success")
	run(step3, 1, "success")
	run(step4, 1, "success")
	run(2<<14+1, 1, "permanent_failure")
	run(3<<14+1, 1, "retryable_failure")
	run(3<<14+1, 2, "retryable_failure")
	run(3<<14+1, 3, "success")
	run(4<<14+1, 1, "")
	run(6<<14+1, 1, "retryable_failure")
	run(6<<14+2, 1, "retryable_failure")
	run(7<<14+1, 1, "")
	run(7<<14+2, 1, "retryable_failure")
	run(7<<14+2, 2, "retryable_failure")
	run(7<<14+2, 3, "")
	run(8<<14+1, 1, "success")
	late := history.TokenDigest(fmt.Sprintf("%d/%d", step2, 2))
	workers = append(workers,
		history.Entry{Kind: history.ReportSent, Token: late, Outcome: "success"},
		history.Entry{Kind: history.ReportAnswered, Token: late, Outcome: "success", Reason: "LEASE_LOST"})

	for n := int64(1); n <= 8; n++ {
		key := fmt.Sprintf("order-%d", n)
		if n >= 7 {
			key = ""
		}
		client = append(client, history.Entry{Kind: history.SubmitSent, Namespace: "default", Key: key})
		if n != 4 && n != 7 { // these two answers were lost
			client = append(client, history.Entry{Kind: history.SubmitAnswered, Namespace: "default", Key: key, TaskID: n << 14})
		}
	}
	// The client tried again and was told so.
	client = append(client, history.Entry{Kind: history.SubmitAnswered, Key: "order-1", TaskID: 1 << 14, AlreadySubmitted: true})
	return workers, client
}

func write(t *testing.T, name string, entries []history.Entry) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	j, err := history.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := j.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// sent is the report that was sent under a token.
func sent(entries []history.Entry, token string) *history.Entry {
	i := slices.IndexFunc(entries, func(e history.Entry) bool { return e.Kind == history.ReportSent && e.Token == token })
	return &entries[i]
}

func TestJournalsAgree(t *testing.T) {
	workers, client := seen()
	r := check(t, clean(t), write(t, "workers", workers), write(t, "client", client))
	for _, v := range r.Violations {
		t.Error(v)
	}
	if got, want := []int{r.Frames, r.Reports, r.AckedReports, r.AckedSubmits}, []int{18, 15, 14, 7}; !slices.Equal(got, want) {
		t.Errorf("frames, reports, acknowledged reports and submits: %v, want %v", got, want)
	}
}

func TestJournalsDisagree(t *testing.T) {
	token := func(step int64, dispatch int) string {
		return history.TokenDigest(fmt.Sprintf("%d/%d", step, dispatch))
	}
	for _, tt := range []struct {
		name   string
		tamper func(workers, client *[]history.Entry)
		want   string
	}{
		{"a frame of nobody's", func(w, _ *[]history.Entry) {
			*w = append(*w, history.Entry{Kind: history.FrameReceived, StepID: step4, Dispatch: 2, Token: "x"})
		}, "S3: step 16388, dispatch 2: a worker received it and the history does not have it"},
		{"one dispatch given to two workers", func(w, _ *[]history.Entry) {
			*w = append(*w, history.Entry{Kind: history.FrameReceived, StepID: step4, Dispatch: 1, Token: "x"})
		}, "S3: step 16388, dispatch 1: workers received it under 2 different tokens"},
		{"a failure that counted against its worker's word", func(w, _ *[]history.Entry) {
			sent(*w, token(step2, 1)).Skip = pointer(true)
		}, "S5: step 16386, dispatch 1: its worker asked that it does not count: true; it did not count: false"},
		{"a failure that did not count, unasked", func(w, _ *[]history.Entry) {
			sent(*w, token(6<<14+2, 1)).Skip = pointer(false)
		}, "S5: step 98306, dispatch 1: its worker asked that it does not count: false; it did not count: true"},
		{"an acknowledged report that is lost", func(w, _ *[]history.Entry) {
			*w = append(*w, history.Entry{Kind: history.ReportAnswered, Token: token(7<<14+2, 3), Outcome: "success"})
		}, "S8: step 114690, dispatch 3: a worker's success was acknowledged, the history has nothing"},
		{"an acknowledged report that became another", func(w, _ *[]history.Entry) {
			*w = append(*w, history.Entry{Kind: history.ReportAnswered, Token: token(step2, 1), Outcome: "success", AlreadyRecorded: true})
		}, "S8: step 16386, dispatch 1: a worker's success was acknowledged, the history has retryable_failure"},
		{"an acknowledged late report", func(w, _ *[]history.Entry) {
			for i, e := range *w {
				if e.Reason == "LEASE_LOST" {
					(*w)[i].Reason = ""
				}
			}
		}, "S8: step 16386, dispatch 2: a worker's success was acknowledged, the history has nothing"},
		{"a result that no worker sent", func(w, _ *[]history.Entry) {
			*w = slices.DeleteFunc(*w, func(e history.Entry) bool { return e.Kind == history.ReportSent && e.Token == token(step3, 1) })
		}, "S4: step 16387, dispatch 1: the history accepted a success that no worker sent (sent: nothing)"},
		{"a recorded result answered LEASE_LOST", func(w, _ *[]history.Entry) {
			*w = append(*w, history.Entry{Kind: history.ReportAnswered, Token: token(step3, 1), Outcome: "success", Reason: "LEASE_LOST"})
		}, "S4: step 16387, dispatch 1: its success was accepted, and a report under its token answered LEASE_LOST"},
		{"an acknowledged submit that is lost", func(_, c *[]history.Entry) {
			*c = append(*c, history.Entry{Kind: history.SubmitAnswered, Key: "order-9", TaskID: 9 << 14})
		}, "S7: task 147456: its submit was acknowledged, and there is no such task"},
		{"one key, two tasks", func(_, c *[]history.Entry) {
			*c = append(*c, history.Entry{Kind: history.SubmitAnswered, Key: "order-1", TaskID: 2 << 14})
		}, `S9: task 16384: key "order-1" of default was answered with 2 tasks: [16384 32768]`},
		{"another task than the key's", func(_, c *[]history.Entry) {
			for i, e := range *c {
				if e.Kind == history.SubmitAnswered && e.Key == "order-2" {
					(*c)[i].TaskID = 3 << 14
				}
			}
		}, `S9: task 49152: key "order-2" of default was answered with it and belongs to task 32768`},
		{"a task that no client submitted", func(_, c *[]history.Entry) {
			*c = slices.DeleteFunc(*c, func(e history.Entry) bool { return e.Key == "" && e.TaskID == 0 })
		}, "S7: task 114688: it and 0 others were submitted by no client, 0 submits without a key are unanswered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			workers, client := seen()
			tt.tamper(&workers, &client)
			r := check(t, clean(t), write(t, "workers", workers), write(t, "client", client))
			if r.Total != 1 || r.Violations[0].String() != tt.want {
				t.Errorf("got %v\nwant %s", r.Violations, tt.want)
			}
		})
	}
}

// PostgreSQL was killed and has forgotten a grant that a worker had received: the dispatch was made again under another
// token, or never, and what came under the first was too late.
func TestCrashMayForgetGrants(t *testing.T) {
	const lateAgain = `select ev(20, 'late', (1 << 14) + 4, 0, dispatch => 1, session => 2, outcome => 'success');
		insert into late_report (task_id, step_no, dispatch, outcome, digest, recorded_at) values (1 << 14, 4, 1, 'success', '', at(20))`
	const lateNever = `select ev(20, 'late', (1 << 14) + 4, 0, dispatch => 2, session => 2, outcome => 'success');
		insert into late_report (task_id, step_no, dispatch, outcome, digest, recorded_at) values (1 << 14, 4, 2, 'success', '', at(20))`
	forgotten := func(dispatch int, reported bool) []history.Entry {
		entries := []history.Entry{{Kind: history.FrameReceived, StepID: step4, Dispatch: dispatch, Token: "x"}}
		if reported {
			entries = append(entries, history.Entry{Kind: history.ReportSent, Token: "x", Outcome: "success"},
				history.Entry{Kind: history.ReportAnswered, Token: "x", Outcome: "success", Reason: "LEASE_LOST"})
		}
		return entries
	}
	for _, tt := range []struct {
		name, sql string
		entries   []history.Entry
		want      string // with a crash; empty: nothing
	}{
		{"granted again", "", forgotten(1, false), ""},
		{"granted again and reported", lateAgain, forgotten(1, true), ""},
		{"never granted again", "", forgotten(2, false), ""},
		{"never granted again and reported", lateNever, forgotten(2, true), ""},
		{
			"acknowledged under both tokens", "",
			append(forgotten(1, false), history.Entry{Kind: history.ReportSent, Token: "x", Outcome: "success"},
				history.Entry{Kind: history.ReportAnswered, Token: "x", Outcome: "success"}),
			"S4: step 16388, dispatch 1: reports under 2 different tokens were acknowledged",
		},
		{
			"acknowledged and forgotten", "",
			append(forgotten(2, false), history.Entry{Kind: history.ReportSent, Token: "x", Outcome: "success"},
				history.Entry{Kind: history.ReportAnswered, Token: "x", Outcome: "success"}),
			"S8: step 16388, dispatch 2: a worker's success was acknowledged, the history has nothing",
		},
		{
			"late without a second grant", lateAgain, nil,
			"S4: step 16388, dispatch 1: a report was taken for late although the dispatch was concluded by one",
		},
		{
			"late from nobody", lateNever, nil,
			"S4: step 16388, dispatch 2: a late report of a dispatch that was never made",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := clean(t)
			if _, err := db.Pool.Exec(t.Context(), tt.sql); err != nil {
				t.Fatal(err)
			}
			workers, client := seen()
			journals := []string{write(t, "workers", append(workers, tt.entries...)), write(t, "client", client)}
			r, err := history.Check(t.Context(), db.Pool, history.Options{Journals: journals, Sample: -1, Crashed: true})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.want == "" && !r.Holds():
				t.Errorf("got %v", r.Violations)
			case tt.want != "" && (r.Total != 1 || r.Violations[0].String() != tt.want):
				t.Errorf("got %v\nwant %s", r.Violations, tt.want)
			}
			if tt.entries != nil && r.Forgotten != 1 {
				t.Errorf("%d grants were forgotten, want 1", r.Forgotten)
			}
			// Where nothing crashed, nothing may be forgotten.
			if r := check(t, db, journals...); r.Holds() {
				t.Error("nothing was found without a crash")
			}
		})
	}
}

func TestJournalOutlivesItsWriter(t *testing.T) {
	path := write(t, "journal", []history.Entry{{Kind: history.SubmitSent, Key: "a"}})
	again, err := history.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	want := history.Entry{Kind: history.FrameReceived, At: at, StepID: 1<<62 + 1, Dispatch: 2, Token: history.TokenDigest("secret")}
	if err := again.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	// Killed in the middle of a line.
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"kind":"frame","step_`); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	var got []history.Entry
	if err := history.ReadJournal(path, func(e history.Entry) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Key != "a" || !cmp.Equal(got[1], want) {
		t.Errorf("got %+v", got)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "secret") {
		t.Error("a token stands in the journal")
	}
}

func TestJournalErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := history.OpenJournal(filepath.Join(dir, "no", "such")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	path := write(t, "journal", nil)
	if err := os.WriteFile(path, []byte("{}\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := history.ReadJournal(path, func(history.Entry) error { return nil }); err == nil || !strings.Contains(err.Error(), path+":2: ") {
		t.Errorf("got %v", err)
	}
	if _, err := history.Check(t.Context(), clean(t).Pool, history.Options{Journals: []string{path}}); err == nil {
		t.Error("a journal that cannot be read was passed over")
	}
	j, err := history.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Write(history.Entry{Kind: history.SubmitSent}); err == nil {
		t.Error("a closed journal took an entry")
	}
}
