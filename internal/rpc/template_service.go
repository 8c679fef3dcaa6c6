package rpc

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

type templateService struct {
	pb.UnimplementedTemplateServiceServer
	*Services
}

// RegisterTemplate stores a template, or finds that it is there.
func (s *templateService) RegisterTemplate(ctx context.Context, req *pb.RegisterTemplateRequest) (*pb.RegisterTemplateResponse, error) {
	if err := withinBatch(req); err != nil {
		return nil, err
	}
	if _, err := checkTemplate(req.GetTemplate()); err != nil {
		return nil, under("template", err)
	}
	namespace := caller(ctx).Namespace
	t, err := newTemplate(namespace, req.GetTemplate(), caller(ctx).Actor)
	if err != nil {
		return nil, err
	}
	answer, err := s.engine.RegisterTemplate(ctx, t)
	if err != nil {
		return nil, err
	}
	stored := proto.CloneOf(req.GetTemplate())
	stored.Namespace, stored.Version = namespace, &answer.Version
	return &pb.RegisterTemplateResponse{
		Template: stored, AlreadyRegistered: answer.AlreadyRegistered, RegisteredAt: timestamppb.New(answer.RegisteredAt),
	}, nil
}

// GetTemplate reads one version of a template.
func (s *templateService) GetTemplate(ctx context.Context, req *pb.GetTemplateRequest) (*pb.GetTemplateResponse, error) {
	view, err := s.engine.GetTemplate(ctx, caller(ctx).Namespace, req.GetTemplate().GetName(), req.GetTemplate().GetVersion())
	if err != nil {
		return nil, err
	}
	t, err := templateMessage(&view)
	if err != nil {
		return nil, err
	}
	return &pb.GetTemplateResponse{Template: t, RegisteredAt: timestamppb.New(view.CreatedAt), RegisteredBy: view.CreatedBy}, nil
}

// ListTemplates reads a page of a namespace's templates.
func (s *templateService) ListTemplates(ctx context.Context, req *pb.ListTemplatesRequest) (*pb.ListTemplatesResponse, error) {
	var unread error
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.TemplateView], error) {
		return s.engine.ListTemplates(ctx, caller(ctx).Namespace, req.GetName(), req.GetLatestOnly(), r)
	}, func(v *task.TemplateView) *pb.TemplateSummary {
		summary, err := templateSummary(v)
		unread = errors.Join(unread, err)
		return summary
	})
	if err = errors.Join(err, unread); err != nil {
		return nil, err
	}
	return &pb.ListTemplatesResponse{Templates: list, NextPageToken: next}, nil
}

func templateSummary(v *task.TemplateView) (*pb.TemplateSummary, error) {
	t, err := templateMessage(v)
	if err != nil {
		return nil, err
	}
	return &pb.TemplateSummary{
		Namespace: v.Namespace, Name: v.Name, Version: v.Version, Description: t.GetDescription(), StepCount: count(len(t.GetSteps())),
		RegisteredAt: timestamppb.New(v.CreatedAt), RegisteredBy: v.CreatedBy,
	}, nil
}
