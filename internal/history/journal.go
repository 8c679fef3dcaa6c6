package history

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// EntryKind is what a line of a journal tells.
type EntryKind string

// The kinds of entries. Workers write the first three, clients the others.
const (
	// FrameReceived is a step that a worker was given, written before the step is run.
	FrameReceived EntryKind = "frame"
	// ReportSent is a report about to be sent for the first time. From here on the server may have recorded it.
	ReportSent EntryKind = "report"
	// ReportAnswered is a report that the server answered for good: recorded (no reason), or refused.
	ReportAnswered EntryKind = "answer"
	// SubmitSent is a submit about to be sent for the first time.
	SubmitSent EntryKind = "submit"
	// SubmitAnswered is a submit that was answered with a task.
	SubmitAnswered EntryKind = "submitted"
)

// Entry is one line of a journal: what a worker or a client saw with its own eyes. Ids are those of the contract, but
// numbers. A lease token is never written down: TokenDigest stands for it.
type Entry struct {
	Kind EntryKind `json:"kind"`
	At   time.Time `json:"at"` // the writer's own clock; for people

	// Of a frame. Of a report and its answer too, where the writer knows them.
	StepID   int64  `json:"step_id,omitempty,string"`
	Dispatch int    `json:"dispatch,omitempty"`
	Token    string `json:"token,omitempty"` // TokenDigest of the lease token
	Probe    *bool  `json:"probe,omitempty"` // of a frame: whether it said that the run is a probe; nil: not written down
	// Of a report and its answer: success, retryable_failure or permanent_failure.
	Outcome         string `json:"outcome,omitempty"`
	Skip            *bool  `json:"skip,omitempty"`   // of a report: whether it asked not to be counted; nil: not written down
	Reason          string `json:"reason,omitempty"` // of a refusal, such as LEASE_LOST
	AlreadyRecorded bool   `json:"already_recorded,omitempty"`

	// Of a submit and its answer.
	Namespace        string `json:"namespace,omitempty"`
	Key              string `json:"key,omitempty"` // empty: without an idempotency key
	TaskID           int64  `json:"task_id,omitempty,string"`
	AlreadySubmitted bool   `json:"already_submitted,omitempty"`
}

// TokenDigest stands for a lease token in a journal.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:12])
}

// Journal is the file in which one process writes down what it saw. It outlives the kill of its writer.
type Journal struct {
	mu   sync.Mutex
	file *os.File
	err  error // the first; everything after it fails too
}

// OpenJournal opens a journal for appending. Each process has its own file.
func OpenJournal(path string) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	return &Journal{file: file}, nil
}

// Write appends an entry. When it returns without an error, the entry is on disk.
func (j *Journal) Write(e Entry) error {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	_, err = j.file.Write(append(line, '\n'))
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		j.err = fmt.Errorf("writing the journal: %w", err)
	}
	return j.err
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}

// ReadJournal calls f with each entry of a journal. A last line without an end is what a killed writer left: it is passed
// over, since nothing was done on its word.
func ReadJournal(path string, f func(Entry) error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading a journal: %w", err)
	}
	defer func() { _ = file.Close() }() // It was only read.
	r := bufio.NewReaderSize(file, 1<<16)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading a journal: %w", err)
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if err := f(e); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
}
