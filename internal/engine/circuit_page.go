package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/taskerhq/tasker/internal/task"
)

// circuitKey is a place in a list of circuits: the page goes on behind it.
type circuitKey struct {
	Name string `json:"c"`
}

// CircuitPage reads a page of a namespace's circuits, by name.
func (e *Engine) CircuitPage(ctx context.Context, q task.CircuitQuery, r task.PageRequest) (page task.Page[task.Circuit], err error) {
	slices.Sort(q.States)
	q.After, q.Limit = "", 0
	filter := struct {
		Verb  string
		Query task.CircuitQuery
	}{"ListCircuits", q}
	var key circuitKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if r.Token != "" && (key.Name == "" || strings.ContainsRune(key.Name, 0)) {
		return page, errPageToken()
	}
	limit := r.Limit()
	q.After, q.Limit = key.Name, limit+1
	found, err := e.ListCircuits(ctx, q)
	if err != nil {
		return page, err
	}
	page.Items = values(found, limit)
	if len(found) > limit {
		page.NextToken, err = pageToken(filter, circuitKey{found[limit-1].Name})
	}
	return page, err
}

// circuitEventKey is a place in the record of circuits: the page goes on below it.
type circuitEventKey struct {
	ID int64 `json:"e"`
}

// CircuitEventPage reads a page of the record of a namespace's circuits, the newest first.
func (e *Engine) CircuitEventPage(ctx context.Context, q task.CircuitEventQuery, r task.PageRequest) (page task.Page[task.CircuitEvent], err error) {
	q.Before, q.Limit = 0, 0
	filter := struct {
		Verb  string
		Query task.CircuitEventQuery
	}{"ListCircuitEvents", q}
	var key circuitEventKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if r.Token != "" && key.ID <= 0 {
		return page, errPageToken()
	}
	limit := r.Limit()
	q.Before, q.Limit = key.ID, limit+1
	found, err := e.ListCircuitEvents(ctx, q)
	if err != nil {
		return page, err
	}
	page.Items = values(found, limit)
	if len(found) > limit {
		page.NextToken, err = pageToken(filter, circuitEventKey{found[limit-1].ID})
	}
	return page, err
}

// values are what the first n pointers point to.
func values[V any](list []*V, n int) []V {
	out := make([]V, min(n, len(list)))
	for i := range out {
		out[i] = *list[i]
	}
	return out
}
