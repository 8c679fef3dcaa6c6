package engine

import (
	"context"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// RegisterTemplate stores a template, unless an equal one stands; without a version, the server chooses one.
func (e *Engine) RegisterTemplate(ctx context.Context, t task.NewTemplate) (task.Registered, error) {
	namespaceID, err := e.namespace(ctx, t.Namespace)
	if err != nil {
		return task.Registered{}, err
	}
	return e.store.RegisterTemplate(ctx, namespaceID, t)
}

// GetTemplate reads one version of a template, the latest for version "".
func (e *Engine) GetTemplate(ctx context.Context, namespace, name, version string) (task.TemplateView, error) {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	namespaceID, ok, err := e.findNamespace(ctx, namespace)
	if err != nil {
		return task.TemplateView{}, err
	}
	var v task.TemplateView
	if ok {
		v, ok, err = e.store.Template(ctx, namespaceID, namespace, name, version)
	}
	if err == nil && !ok {
		err = task.Refuse(task.TemplateNotFound, "there is no such template").With("name", name).With("version", version)
	}
	return v, err
}

// templateKey is a place in a list of templates.
type templateKey struct {
	Name    string `json:"n"`
	Version string `json:"v"`
}

// ListTemplates reads a page of a namespace's templates by name, the versions of each from the newest to the oldest.
func (e *Engine) ListTemplates(ctx context.Context, namespace, name string, latestOnly bool, r task.PageRequest) (page task.Page[task.TemplateView], err error) {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	filter := struct {
		Verb, Namespace, Name string
		LatestOnly            bool
	}{"ListTemplates", namespace, name, latestOnly}
	var key templateKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	namespaceID, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return page, err
	}
	limit := r.Limit()
	page.Items, err = e.store.Templates(ctx, namespaceID, namespace, store.TemplateFilter{Name: name, LatestOnly: latestOnly},
		store.TemplateKey(key), limit)
	if err == nil && len(page.Items) == limit {
		last := page.Items[limit-1]
		page.NextToken, err = pageToken(filter, templateKey{Name: last.Name, Version: last.Version})
	}
	return page, err
}
