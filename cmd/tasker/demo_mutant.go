package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/taskerhq/tasker/internal/history"
)

var errNothingToTamper = errors.New("no journal holds what the defect needs")

// tamper plants the defects that are in what was written down, not in what was done. A checker that only believed the server
// would not notice any of them.
func (d *demo) tamper() error {
	switch d.mutant {
	case "tamper_journal":
		return d.tamperRun(func(entries []history.Entry, token string) []history.Entry {
			for place := range entries {
				if entries[place].Token == token && entries[place].Outcome == "success" {
					entries[place].Outcome = "permanent_failure"
				}
			}
			return entries
		})
	case "forge_journal":
		return d.tamperRun(func(entries []history.Entry, token string) []history.Entry {
			for _, entry := range entries {
				if entry.Token == token {
					entry.Dispatch += 100
					entry.Token = strings.Repeat("0", len(token))
					entries = append(entries, entry)
				}
			}
			return entries
		})
	case "drop_journal":
		return d.tamperRun(func(entries []history.Entry, token string) []history.Entry {
			var kept []history.Entry
			for _, entry := range entries {
				if entry.Token != token {
					kept = append(kept, entry)
				}
			}
			return kept
		})
	case "lose_task":
		// An id that the database has never come to.
		return d.appendTo(filepath.Join(d.dir, "client.journal"),
			history.Entry{Kind: history.SubmitSent, Namespace: "default", Key: "nobody"},
			history.Entry{Kind: history.SubmitAnswered, Namespace: "default", Key: "nobody", TaskID: 1 << 40})
	}
	return nil
}

// tamperRun changes the journal of a worker around one run whose success was acknowledged.
func (d *demo) tamperRun(change func(entries []history.Entry, token string) []history.Entry) error {
	for _, worker := range d.workers {
		var entries []history.Entry
		token := ""
		err := history.ReadJournal(worker.journal, func(entry history.Entry) error {
			entries = append(entries, entry)
			if entry.Kind == history.ReportAnswered && entry.Outcome == "success" && entry.Reason == "" {
				token = entry.Token
			}
			return nil
		})
		if err != nil {
			return err
		}
		if token == "" {
			continue
		}
		if err := os.Remove(worker.journal); err != nil {
			return err
		}
		return d.appendTo(worker.journal, change(entries, token)...)
	}
	return errNothingToTamper
}

func (d *demo) appendTo(path string, entries ...history.Entry) error {
	journal, err := history.OpenJournal(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := journal.Write(entry); err != nil {
			return errors.Join(err, journal.Close())
		}
	}
	return journal.Close()
}
