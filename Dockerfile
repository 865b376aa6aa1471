# One image for every role: worker, beat, flower and the one-shot `flowstone db migrate`.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /srv/flowstone
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY flowstone_celery ./flowstone_celery
RUN pip install ".[flower]" \
    && useradd --create-home --uid 10001 flowstone

# The app is mounted or copied here; `-A shop` finds shop.py.
WORKDIR /srv/app
USER flowstone
CMD ["flowstone", "--help"]
