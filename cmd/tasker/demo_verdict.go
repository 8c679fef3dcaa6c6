package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/taskerhq/tasker/examples/registration"
	"github.com/taskerhq/tasker/internal/history"
)

// verdictFaults is how many faults of one kind are told.
const verdictFaults = 5

// judge holds the three records against each other, prints what was found, and says whether everything held.
func (d *demo) judge(ctx context.Context) (bool, error) {
	if err := d.tamper(); err != nil {
		return false, err
	}
	if err := d.askAll(ctx, "error"); err != nil {
		return false, err
	}
	reader, err := d.connectDemo(ctx, "tasker_reader")
	if err != nil {
		return false, fmt.Errorf("connecting to the database: %w", err)
	}
	defer reader.Close(ctx)
	faults, err := d.compareFates(ctx, reader)
	if err != nil {
		return false, err
	}
	owner, err := d.connectDemo(ctx, "")
	if err != nil {
		return false, fmt.Errorf("connecting to the database: %w", err)
	}
	defer owner.Close(ctx)
	began := time.Now()
	report, err := history.Check(ctx, owner, history.Options{Journals: d.journals, Sample: -1})
	if err != nil {
		return false, fmt.Errorf("checking the history: %w", err)
	}
	d.say("replayed the history against %d journals in %s", len(d.journals), time.Since(began).Round(time.Millisecond))
	return d.printVerdict(&verdict{report: report, audited: registration.Audit(d.services.Calls()), fates: faults}), nil
}

// queryRows is how many rows of an answer are shown.
const queryRows = 6

// askAll runs an operator's queries, word for word, on every task, or on those with a status: task_id comes from before the
// LATERAL.
func (d *demo) askAll(ctx context.Context, status string) error {
	conn, err := d.connectDemo(ctx, "tasker_reader")
	if err != nil {
		return fmt.Errorf("connecting to the database: %w", err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select task_id from get_task_execution_contexts_batch($1) where $2 in ('', status) order by task_id`,
		slices.Collect(maps.Values(d.client.users())), status)
	if err != nil {
		return fmt.Errorf("listing the tasks: %w", err)
	}
	tasks, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("listing the tasks: %w", err)
	}
	if d.board != nil {
		d.board.hide()
	}
	for _, query := range registration.Queries {
		fmt.Fprintln(d.cli.stdout)
		for line := range strings.SplitSeq(strings.TrimSpace(query), "\n") {
			fmt.Fprintln(d.cli.stdout, d.printer.paint(styleDim, line))
		}
		if err := d.askOne(ctx, conn, query, tasks); err != nil {
			return fmt.Errorf("asking %q: %w", query, err)
		}
	}
	fmt.Fprintln(d.cli.stdout)
	return nil
}

func (d *demo) askOne(ctx context.Context, conn *pgx.Conn, query string, tasks []int64) error {
	statement := "select task.task_id, answer.* from unnest($1::bigint[]) as task (task_id) cross join lateral (" +
		strings.TrimSuffix(strings.TrimSpace(query), ";") + ") as answer order by task.task_id"
	rows, err := conn.Query(ctx, statement, tasks)
	if err != nil {
		return err
	}
	_, err = d.showRows(rows)
	return err
}

// showRows prints the first rows of an answer, and how many there are.
func (d *demo) showRows(rows pgx.Rows) (count int, err error) {
	defer rows.Close()
	var heads []string
	for _, field := range rows.FieldDescriptions() {
		heads = append(heads, field.Name)
	}
	answer := d.printer.table(heads...)
	for ; rows.Next(); count++ {
		if count >= queryRows {
			continue
		}
		values, err := rows.Values()
		if err != nil {
			return count, err
		}
		cells := make([]string, len(values))
		for column, value := range values {
			cells[column] = cell(value)
		}
		answer.add(cells...)
	}
	if err := rows.Err(); err != nil {
		return count, err
	}
	if err := answer.print(); err != nil {
		return count, err
	}
	_, err = fmt.Fprintf(d.cli.stdout, "(%d rows)\n", count)
	return count, err
}

// cell is a value as psql would print it, as far as the queries need.
func cell(value any) string {
	switch value := value.(type) {
	case nil:
		return ""
	case time.Time:
		return value.Format("2006-01-02 15:04:05.000000Z07")
	case pgtype.Numeric:
		text, err := value.Value()
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(text)
	}
	return fmt.Sprint(value)
}

// compareFates says where a step did not end as its service's plan foretells.
func (d *demo) compareFates(ctx context.Context, conn *pgx.Conn) (faults []string, err error) {
	users := d.client.users()
	byTask := make(map[int64]int64, len(users))
	for user, id := range users {
		byTask[id] = user
	}
	steps, err := readiness(ctx, conn, slices.Collect(maps.Keys(byTask)))
	if err != nil {
		return nil, fmt.Errorf("reading how the steps ended: %w", err)
	}
	if want := d.tasks * len(registration.Steps); len(steps) != want {
		faults = append(faults, fmt.Sprintf("%d steps are there, %d were submitted", len(steps), want))
	}
	for _, step := range steps {
		user := byTask[step.TaskID]
		if want, got := registration.Fates(d.seed, user)[step.Name], fateOf(step); got != want {
			faults = append(faults, fmt.Sprintf("user %d, %s: planned %s, found %s (%s, %d of %d attempts)", user, step.Name, want, got, step.CurrentState, step.Attempts, step.RetryLimit))
		}
	}
	slices.Sort(faults)
	return faults, nil
}

// fateOf says what became of a step, by its row.
func fateOf(step readinessRow) registration.Fate {
	switch {
	case step.CurrentState == "complete":
		return registration.Completes
	case step.CurrentState == "pending" && len(step.BlockedBy) > 0:
		return registration.Blocked
	case step.CurrentState == "error" && !step.RetryEligible && step.NextRetryAt == nil && step.Attempts >= step.RetryLimit:
		return registration.Exhausted
	case step.CurrentState == "error" && !step.RetryEligible && step.NextRetryAt == nil:
		return registration.Permanent
	}
	return registration.Fate(step.bucket())
}

// verdict is everything that was found.
type verdict struct {
	report  history.Report
	audited registration.Audited
	fates   []string
}

// violations of some invariants, and findings of some rules, as sentences.
func (v *verdict) faults(invariants, rules string) (faults []string) {
	for _, violation := range v.report.Violations {
		if slices.Contains(strings.Fields(invariants), violation.Invariant) {
			faults = append(faults, violation.String())
		}
	}
	for _, finding := range v.audited.Findings {
		if slices.Contains(strings.Split(rules, ","), finding.Rule) {
			faults = append(faults, finding.Rule+": "+finding.What)
		}
	}
	return faults
}

// printVerdict prints the summary: each promise, what it was held against, and what broke it.
func (d *demo) printVerdict(v *verdict) bool {
	r, a := v.report, v.audited
	holds := true
	promise := func(faults []string, format string, args ...any) { holds = d.promise(faults, format, args...) && holds }

	fmt.Fprintf(d.cli.stdout, "\nTasks     %d: %d complete, %d in error\n", r.Tasks, r.States["complete"], r.States["error"])
	fmt.Fprintf(d.cli.stdout, "Steps     %d: %d complete, %d failed for good, %d blocked behind those\n", r.Steps, r.Ended["complete"], r.Ended["error"], r.Ended["pending"])
	fmt.Fprintf(d.cli.stdout, "Attempts  %d in %d dispatches: %d failed; %d leases were lost, %d dispatches never arrived, %d late reports came\n",
		r.Attempts, r.Dispatches, r.Failures, r.LostLeases, r.Undelivered, r.LateReports)
	fmt.Fprintf(d.cli.stdout, "Calls     %s; %d found their work done before\n", statuses(a.Calls), a.Repeats)
	fmt.Fprintf(d.cli.stdout, "Journals  %d frames received, %d reports sent, %d acknowledged (%d repeated), %d submits acknowledged\n\n",
		r.Frames, r.Reports, r.AckedReports, r.RepeatedReports, r.AckedSubmits)

	promise(v.faults("S6", registration.RuleEarly),
		"no step early: %d retries by the services' own clocks, the closest %s after it was due; %d dispatches by the history", a.Waits, a.Least.Round(time.Microsecond), r.Dispatches)
	promise(v.faults("S7 S8 S9 S14", registration.RuleTwice),
		"none lost, none twice: %d submits and %d reports acknowledged, each found in the history once", r.AckedSubmits, r.AckedReports)
	promise(v.faults("S1 S5 S12", strings.Join([]string{registration.RulePermanent, registration.RuleLimit}, ",")),
		"none run after a permanent failure or its last attempt: %d steps failed for good", r.Ended["error"])
	promise(v.faults("S2", registration.RuleOrder), "none before its parents: every service had done its work before the next was called")
	promise(v.faults("S3 S4 S10", ""), "one lease at a time, one result a dispatch, no worker above its %d", workerSlots)
	promise(v.faults("S13", ""), "readiness and state are what the steps make them")
	promise(v.fates, "every step ended as its service's plan foretells")
	// What no promise above names must still not pass unseen.
	if holds && !r.Holds() {
		promise(v.faults(allInvariants(r), ""), "everything else")
	}
	fmt.Fprintln(d.cli.stdout)
	return holds
}

// promise prints one promise and what broke it, and says whether nothing did.
func (d *demo) promise(faults []string, format string, args ...any) bool {
	mark := d.printer.paint(styleGood, "kept  ")
	if len(faults) > 0 {
		mark = d.printer.paint(styleBad, "BROKEN")
	}
	fmt.Fprintf(d.cli.stdout, "  %s  %s\n", mark, fmt.Sprintf(format, args...))
	for _, fault := range faults[:min(len(faults), verdictFaults)] {
		fmt.Fprintf(d.cli.stdout, "            %s\n", fault)
	}
	if more := len(faults) - verdictFaults; more > 0 {
		fmt.Fprintf(d.cli.stdout, "            … and %d more\n", more)
	}
	return len(faults) == 0
}

func allInvariants(r history.Report) string {
	names := make([]string, 0, len(r.Violations))
	for _, violation := range r.Violations {
		names = append(names, violation.Invariant)
	}
	return strings.Join(names, " ")
}

// statuses tells how often each HTTP status was answered.
func statuses(calls map[int]int) string {
	var parts []string
	total := 0
	for _, status := range slices.Sorted(maps.Keys(calls)) {
		total += calls[status]
		name := fmt.Sprint(status)
		if status == 0 {
			name = "left hanging"
		}
		parts = append(parts, fmt.Sprintf("%d %s", calls[status], name))
	}
	return fmt.Sprintf("%d to the services: %s", total, strings.Join(parts, ", "))
}
