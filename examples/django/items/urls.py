from django.urls import path

from items import views

urlpatterns = [
    path("", views.index),
    path("healthz", views.healthz),
    path("readyz", views.readyz),
    path("ping-db", views.ping_db),
    path("nodb", views.nodb),
    path("items", views.items),
    path("export", views.export),
]
