package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// statementStats is the extension that tells what each statement took.
const statementStats = "pg_stat_statements"

// restartPostgres restarts a Postgres of our own, with statementStats if there is any, and connects anew; to another one it
// only connects anew. The stage must have no server meanwhile.
func (w *world) restartPostgres(ctx context.Context) error {
	if w.databases.own != nil {
		if err := w.stopPostgres(ctx); err != nil {
			return err
		}
	}
	timeout, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := w.connect(timeout)
		if err == nil {
			return w.databases.connect(ctx)
		}
		pause(timeout, 50*time.Millisecond)
		if timeout.Err() != nil {
			return fmt.Errorf("connecting to the restarted PostgreSQL: %w", err)
		}
	}
}

// stopPostgres asks the postmaster for a fast shutdown. Its supervisor starts it again.
func (w *world) stopPostgres(ctx context.Context) error {
	var has bool
	err := w.conn.QueryRow(ctx, "select exists (select from pg_available_extensions where name = $1)", statementStats).Scan(&has)
	if err == nil && has {
		_, err = w.conn.Exec(ctx, "alter system set shared_preload_libraries = '"+statementStats+"'")
	}
	var lock string
	if err == nil {
		err = w.conn.QueryRow(ctx, "select pg_read_file('postmaster.pid')").Scan(&lock)
	}
	if err != nil {
		return fmt.Errorf("preparing to restart PostgreSQL: %w", err)
	}
	first, _, _ := strings.Cut(lock, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return fmt.Errorf("reading the postmaster's number: %w", err)
	}
	postmaster, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("finding the postmaster: %w", err)
	}
	if err := postmaster.Signal(syscall.SIGINT); err != nil {
		return fmt.Errorf("stopping PostgreSQL: %w", err)
	}
	// A session that was there ends with it: only then is a new one one of the new postmaster's.
	for {
		err := w.conn.Ping(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil || w.conn.IsClosed():
			return nil
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// statementTimes is how long each statement took in all, by its first words, in microseconds.
type statementTimes map[string]float64

// resetStatements begins to count anew. It tells whether statements are counted at all.
func (w *world) resetStatements(ctx context.Context) (counted bool, err error) {
	var loaded string
	err = w.conn.QueryRow(ctx, "select current_setting('shared_preload_libraries')").Scan(&loaded)
	if err != nil || !strings.Contains(loaded, statementStats) {
		return false, err
	}
	for _, sql := range []string{"create extension if not exists " + statementStats, "select pg_stat_statements_reset()"} {
		if _, err := w.conn.Exec(ctx, sql); err != nil {
			return false, fmt.Errorf("counting statements anew: %w", err)
		}
	}
	return true, nil
}

// readStatements reads what the servers' statements took since the last reset: all but the one that is ours.
func (w *world) readStatements(ctx context.Context) (statementTimes, error) {
	rows, _ := w.conn.Query(ctx, `
		select query, total_exec_time * 1000 from pg_stat_statements
		where dbid = (select oid from pg_database where datname = current_database()) and toplevel and query <> 'analyze'`)
	times := statementTimes{}
	var (
		query string
		us    float64
	)
	_, err := pgx.ForEachRow(rows, []any{&query, &us}, func() error {
		times[firstWords(query)] += us
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading what statements took: %w", err)
	}
	return times, nil
}

// wordsShown is how much of a statement names it.
const wordsShown = 48

// firstWords is how a statement is named: by the sentence that its file begins with, if it does.
func firstWords(query string) string {
	words := strings.Join(strings.Fields(strings.TrimLeft(query, "- \n\t")), " ")
	if cut, _, ok := strings.Cut(words, ": "); ok && len(cut) <= wordsShown {
		return cut
	}
	if len(words) > wordsShown {
		words = strings.ToValidUTF8(words[:wordsShown], "") + "…"
	}
	return words
}

// worstStatement compares what each statement took a step, in two runs of so many steps each. It leaves out what took less
// than a small part of the second run: that is noise.
func worstStatement(usual statementTimes, usualSteps float64, now statementTimes, steps float64) (name string, was, is float64, err error) {
	var all float64
	for _, us := range now {
		all += us
	}
	for query, us := range now {
		if us < all*statementShare {
			continue
		}
		// What was hardly ever run before is held against what a step's cheapest part takes.
		before := max(usual[query]/usualSteps, statementLeast)
		if each := us / steps; was == 0 || each/before > is/was {
			name, was, is = query, before, each
		}
	}
	if name == "" {
		return "", 0, 0, errors.New("no statement was counted")
	}
	return name, was, is, nil
}

const (
	statementShare = 0.02
	statementLeast = 1.0 // µs a step
)
