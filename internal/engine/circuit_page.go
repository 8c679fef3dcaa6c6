package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/taskerhq/tasker/internal/task"
)

// circuitPlace is a place in a list of circuits: the page goes on behind it.
type circuitPlace struct {
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
	var key circuitPlace
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
		page.NextToken, err = pageToken(filter, circuitPlace{found[limit-1].Name})
	}
	return page, err
}

// circuitEventPlace is a place in the record of circuits: the page goes on below it.
type circuitEventPlace struct {
	ID int64 `json:"e"`
}

// CircuitEventPage reads a page of the record of a namespace's circuits, the newest first.
func (e *Engine) CircuitEventPage(ctx context.Context, q task.CircuitEventQuery, r task.PageRequest) (page task.Page[task.CircuitEvent], err error) {
	q.Before, q.Limit = 0, 0
	filter := struct {
		Verb  string
		Query task.CircuitEventQuery
	}{"ListCircuitEvents", q}
	var key circuitEventPlace
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
		page.NextToken, err = pageToken(filter, circuitEventPlace{found[limit-1].ID})
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
